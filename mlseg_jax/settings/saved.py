"""The configuration that a work directory was trained with: ``saved.py:runs/demo``.

``main.py`` uses it where no ``--config`` is given, so that a trained model can be
evaluated and used with its work directory alone.
"""

import json

from etils import epath
from ml_collections import ConfigDict


def get_config(workdir: str) -> ConfigDict:
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{workdir} is not a work directory (it holds no config.json); give the "
            f"directory that `python main.py train --workdir=...` wrote."
        )
    config = ConfigDict(_with_tuples(json.loads(path.read_text())))
    config.lock()
    return config


def _with_tuples(value):
    """JSON's lists as the tuples they were, or flags could not override them."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
