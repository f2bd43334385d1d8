"""Flags that change keys of a configuration: ``--config.train.steps=1000``."""

import re

KEY = re.compile(r"--?(no)?(?P<key>config\.[^=]+)(?P<value>=.*)?", re.S)


def last_of_each(argv: list[str]) -> list[str]:
    """The arguments without those that a later one of the same key overrides.

    Left to itself, the library appends tuples that are given twice to one another.
    """
    kept, place = [], {}
    i = 0
    while i < len(argv):
        found, count = KEY.fullmatch(argv[i]), 1
        if found:
            # `--config.train.steps 1000`: the value stands by itself.
            apart = found["value"] is None and i + 1 < len(argv)
            count += apart and not re.match("--?[a-z]", argv[i + 1])
            if found["key"] in place:
                kept[place[found["key"]]] = []
            place[found["key"]] = len(kept)
        kept.append(argv[i : i + count])
        i += count
    return [argument for arguments in kept for argument in arguments]
