"""Settings that are chosen: by key, with what is said of them."""

import ml_collections

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
      lines: what is said of it.
    """

    def __init__(self, config: ml_collections.ConfigDict, given: frozenset[str]):
        self.config = config.copy_and_resolve_references()
        self.config.unlock()
        self.given = given
        self.values = {}
        self.lines = []

    def is_given(self, *keys: str) -> bool:
        """Whether the user has set any of these keys or sections."""
        return any(g == k or g.startswith(f"{k}.") for k in keys for g in self.given)

    def set(self, **sections) -> None:
        """``set(train={"steps": 10})`` sets ``train.steps`` unless it was given."""
        for section, values in sections.items():
            for name, value in values.items():
                key = f"{section.replace('__', '.')}.{name}"
                if key not in self.given:
                    put(self.config, key, value)
                    self.values[key] = value

    def say(self, what: str, reason: str) -> None:
        self.lines.append(f"{what}: {reason}")


def put(config: ml_collections.ConfigDict, key: str, value) -> None:
    """Sets a dotted key, whatever was there."""
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value
