"""Flags that a command cannot do without."""

from mlseg_jax.errors import UserError


def required(flags, name: str):
    value = getattr(flags, name)
    if not value:
        raise UserError(f"This command needs --{name}=...; see --help.")
    return value
