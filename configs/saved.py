"""The configuration that a work directory was trained with: ``saved.py:runs/demo``.

``main.py`` uses it where no ``--config`` is given, so that a trained model can be
evaluated and used with its work directory alone.
"""

import json
import pathlib

from ml_collections import ConfigDict


def get_config(workdir: str) -> ConfigDict:
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{workdir} is not a work directory (it holds no config.json); give the "
            f"directory that `python main.py train --workdir=...` wrote."
        )
    config = ConfigDict(json.loads(path.read_text()), convert_dict=True)
    config.lock()
    return config
