"""The configuration that a work directory was trained with: ``saved.py:runs/demo``.

``main.py`` uses it where no ``--config`` is given, so that a trained model can be
evaluated and used with its work directory alone.
"""

import json

from etils import epath
from ml_collections import ConfigDict

from mlseg_jax.settings import base


def get_config(workdir: str) -> ConfigDict:
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{workdir} is not a work directory (it holds no config.json); give the "
            f"directory that `python main.py train --workdir=...` wrote."
        )
    try:
        return _as_config(json.loads(path.read_text()))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, or no configuration ({type(error).__name__}); copy it "
            f"again from where the run was trained."
        ) from error


def _as_config(values: dict) -> ConfigDict:
    config = ConfigDict(_with_tuples(values))
    defaults = base.base("")
    # Averages began without a warm-up before there was the key.
    defaults.optimizer.ema_warmup = config.optimizer.ema_decay == 0
    _add_new_keys(config, defaults)
    _add_new_keys(config.data, _data_defaults())
    head = config.model.get("multilabel_head", ConfigDict())
    if head.get("name") == "projected_encoder":
        # Recipes of pixel classifiers did not always name them.
        _add_new_keys(head, ConfigDict({"classes_apart": False, "mlp_ratio": 4}))
    if config.task == "instance":
        _add_new_keys(config.eval, ConfigDict({"object_threshold": 0.0}))
    config.lock()
    return config


def _data_defaults() -> ConfigDict:
    # Every run has what is to be said here.
    return base.data(name="", crop_size=(1, 1), base_size=(0, 0), normalisation="half")


def _add_new_keys(section: ConfigDict, defaults: ConfigDict) -> None:
    """Keys that the run did not know yet; parts of models have defaults themselves."""
    for key, default in defaults.items():
        if key not in section:
            section[key] = default
        elif isinstance(default, ConfigDict):
            _add_new_keys(section[key], default)


def _with_tuples(value):
    """JSON's lists as the tuples they were, or flags could not override them."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
