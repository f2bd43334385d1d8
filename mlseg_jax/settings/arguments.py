"""What stands after the colon of a recipe, and names near to misspelt ones."""

import difflib
import re

from ml_collections import ConfigDict


def parse_arg(arg: str | None, **defaults: str | int) -> ConfigDict:
    """``"a=1,b=x"`` over ``defaults``, with their types; unknown keys are an error."""
    values = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, separator, text = item.partition("=")
        if not defaults:
            raise ValueError(
                f"The configuration takes nothing after the colon, not {item!r}; "
                "change its keys with --config.KEY=VALUE."
            )
        if not separator or key not in defaults:
            hint = did_you_mean(key, defaults)
            if key in defaults:
                hint = f"; write {key}=VALUE."
            raise ValueError(
                f"The configuration takes {', '.join(f'{k}=...' for k in defaults)} "
                f"after the colon, not {item!r}{hint}"
            )
        if isinstance(defaults[key], int) and not re.fullmatch(r"-?\d+", text):
            raise ValueError(
                f"The configuration takes a whole number after the colon as {key}, not "
                f"{text!r}."
            )
        values[key] = type(defaults[key])(text)
    return values


def choose(table, what: str, name: str):
    """The row of a table, or a sentence that names the nearest one."""
    if name not in table:
        raise ValueError(f"There is no {what} {name!r}{did_you_mean(name, table)}")
    return table[name] if isinstance(table, dict) else name


def did_you_mean(name: str, known, *, of_all: bool = True) -> str:
    """The end of an error sentence: the nearest known name, else all (or none)."""
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose one of {', '.join(known)}." if of_all else "; remove it."
