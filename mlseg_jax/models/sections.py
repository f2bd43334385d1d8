"""A section of a configuration to the part that it describes."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType

import ml_collections


def from_section(
    part: type,
    section: ml_collections.ConfigDict,
    said: Mapping = MappingProxyType({}),
    **offered,
):
    """Makes a part; each argument of its constructor is what the table's row has
    ``said``, or a key of the section, or else ``offered``; or has its default.

    Keys and offers that it has no argument for are for other parts.
    """
    arguments = dict(said)
    for name, default in arguments_of(part).items():
        if name in said:
            continue
        if name in section or (name not in offered and default is REQUIRED):
            value = getattr(section, name)  # an AttributeError where there is none
            arguments[name] = tuple(value) if isinstance(value, list) else value
        elif name in offered:
            arguments[name] = offered[name]
    return part(**arguments)


REQUIRED = inspect.Parameter.empty


def arguments_of(part: type) -> dict[str, object]:
    """Names and defaults of a constructor's arguments."""
    # The signature of an nnx.Module itself is that of its metaclass.
    _, *parameters = inspect.signature(part.__init__).parameters.values()
    return {
        each.name: each.default
        for each in parameters
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
