"""Flags that change keys of a configuration: ``--config.train.steps=1000``."""

import itertools
import re

KEY = re.compile(r"--?(no)?(?P<key>config\.[^=]+)(?P<value>=.*)?", re.S)


def last_of_each(argv: list[str]) -> list[str]:
    """The arguments without those that a later one of the same key overrides, and keys
    after all else.

    Left to itself, the library appends tuples that are given twice to one another, and
    refuses keys that stand before the configuration.
    """
    kept, keys = [], {}
    i = 0
    while i < len(argv):
        found, count = KEY.fullmatch(argv[i]), 1
        if found:
            # `--config.train.steps 1000`: the value stands by itself.
            apart = found["value"] is None and i + 1 < len(argv)
            count += apart and not re.match("--?[a-z]", argv[i + 1])
            keys.pop(found["key"], None)
            keys[found["key"]] = argv[i : i + count]
        else:
            kept += argv[i : i + count]
        i += count
    return [*kept, *itertools.chain(*keys.values())]
