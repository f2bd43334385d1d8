"""Settings that are chosen: by key, with what is said of them."""

import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.settings import recipes
from mlseg_jax.settings.data_sets import DATA_SETS

RECIPE = "configs/own_data.py"
FILE = "choices.json"
"""In the work directory: which keys were chosen, what was said of them, and of what
was looked at what a report needs.
"""

SHARE_OF_STEPS = 0.8
"""Of the minutes that steps get at least."""


class Choices:
    """Settings by key with reasons; keys that were given stay as they are.

    Attributes:
      config: with what is chosen so far.
      values: what was chosen, by dotted key.
    """

    def __init__(self, config: ml_collections.ConfigDict, given: frozenset[str]):
        self.config = config.copy_and_resolve_references()
        self.config.unlock()
        self.given = given
        self.values = {}
        self._said = {}

    def is_given(self, *keys: str) -> bool:
        """Whether the user has set any of these keys or sections."""
        return any(g == k or g.startswith(f"{k}.") for k in keys for g in self.given)

    def set(self, **sections) -> None:
        """``set(train={"steps": 10})`` sets ``train.steps`` unless it was given."""
        for section, values in sections.items():
            for name, value in values.items():
                key = f"{section.replace('__', '.')}.{name}"
                if not any(key == g or key.startswith(f"{g}.") for g in self.given):
                    self._put(key, value)

    def narrow(self, key: str, value) -> None:
        """Sets a key also where it was given: what is chosen is a part of that."""
        self._put(key, value)

    def _put(self, key: str, value) -> None:
        """Sets a key or a section, in which what was given stays."""
        inner = [g for g in self.given if g.startswith(f"{key}.")]
        stays = {g: value_of(self.config, g) for g in inner}
        put(self.config, key, value)
        self.values[key] = value
        for each, given in stays.items():
            try:
                value_of(self.config, each)
            except (KeyError, AttributeError) as error:
                raise UserError(
                    f"{each} is given, but {key} that was chosen has no such key; "
                    f"leave it out, or take another recipe of configs/."
                ) from error
            put(self.config, each, given)

    def say(self, what: str, reason: str) -> None:
        """What was said of the same thing before no longer holds."""
        self._said[what] = reason

    @property
    def lines(self) -> list[str]:
        """What is said of all that was chosen."""
        return [f"{what}: {reason}" for what, reason in self._said.items()]


def given_side(choices: Choices) -> int:
    """The shorter side that pictures or crops were given, in pixels; 0 if neither."""
    for key in ("data.crop_size", "data.base_size"):
        if choices.is_given(key):
            return min(value_of(choices.config, key))
    return 0


def value_of(config: ml_collections.ConfigDict, key: str):
    """The value of a dotted key."""
    for name in key.split("."):
        config = config[name]
    return config


def changed(config: ml_collections.ConfigDict) -> frozenset[str]:
    """Keys whose values are not those of the shipped recipe: somebody has set them."""
    own, name = dict(_leaves(config)), config.data.name
    return min(
        (
            frozenset(k for k, v in own.items() if k not in old or old[k] != v)
            for dataset in {"folder", name if name in DATA_SETS else "folder"}
            for old in [dict(_leaves(recipes.load(f"{RECIPE}:dataset={dataset}")))]
        ),
        key=len,
    )


def _leaves(config: ml_collections.ConfigDict, path: str = ""):
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def put(config: ml_collections.ConfigDict, key: str, value) -> None:
    """Sets a dotted key, whatever was there."""
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value
