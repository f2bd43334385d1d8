"""``statistics``: how many classes images have, and what K covers them."""

import json
import pathlib

from mlseg_jax.cli.flags import required
from mlseg_jax.doctor import label_statistics


def run(flags) -> None:
    config = required(flags, "config")
    found = label_statistics.measure(config)
    if flags.output:
        label_statistics.draw(found, pathlib.Path(flags.output))
    print(
        json.dumps([split.as_json() for split in found])
        if flags.json
        else label_statistics.as_text(found)
    )
