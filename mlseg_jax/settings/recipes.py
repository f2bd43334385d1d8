"""The recipes that come with the library, found by their path and not by their name.

A checkout has them in ``configs/``, an installed package carries them as data. They
import one another as ``from configs import ...``; a project that uses the library may
have a package of that name itself, so the name is theirs only while a recipe is loaded.
"""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from mlseg_jax.errors import UserError
from mlseg_jax.settings.arguments import did_you_mean

PACKAGE = pathlib.Path(__file__).parents[1]
NAME = "configs"


def folder() -> pathlib.Path:
    """Where the recipes lie: inside the installed package, or beside the checkout's."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / NAME


def get(name: str) -> types.ModuleType:
    """The module of a recipe that comes with the library, such as ``segmenter``."""
    with bound():
        return importlib.import_module(f"{NAME}.{name}")


def find(path: str) -> pathlib.Path:
    """The file of a recipe: that path, or ours where it says ``configs/NAME.py``.

    Raises:
      UserError: there is neither.
    """
    given = pathlib.Path(os.path.expanduser(path))
    if given.exists():
        if given.is_dir() or given.suffix != ".py":
            raise UserError(f"{path} is no configuration; give the path of a .py file.")
        return given
    shipped = folder().parent / given
    if given.parent == pathlib.PurePath(NAME):
        shipped = folder() / given.name
    if shipped.exists():
        return shipped
    known = sorted(each.name for each in folder().glob("*.py"))
    hint = did_you_mean(given.name, known)
    raise UserError(f"There is no configuration {path}{hint}")


def load(recipe: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The configuration of ``FILE.py`` or ``FILE.py:ARGS``, with changes by dotted key.

    Raises:
      UserError: there is no such file or key, or a value is of another type.
    """
    name, _, argument = recipe.partition(":")
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with bound():
        spec.loader.exec_module(module)
        config = module.get_config(argument or None)
    change(config, overrides)
    return config


def change(config: ConfigDict, overrides: Mapping[str, Any] | None) -> None:
    """Sets values by dotted key, such as ``{"train.steps": 100}``.

    Raises:
      UserError: there is no such key, or a value is of another type.
    """
    for key, value in (overrides or {}).items():
        section, *inner = config, *str(key).split(".")
        for part in inner[:-1]:
            section = section.get(part)
            if not isinstance(section, ConfigDict):
                break
        if not isinstance(section, ConfigDict) or inner[-1] not in section:
            raise UserError(f"The configuration has no key {key!r}.")
        try:
            section[inner[-1]] = value
        except TypeError as error:
            raise UserError(
                f"{key} is {value!r}, but must be like {section[inner[-1]]!r}."
            ) from error


@contextlib.contextmanager
def bound() -> Iterator[None]:
    """Within it ``configs`` are the recipes, whoever else has a package so named."""
    if _is_ours(sys.modules.get(NAME)):
        yield
        return
    foreign = _take_away()
    try:
        sys.modules[NAME] = types.ModuleType(NAME)
        sys.modules[NAME].__path__ = [str(folder())]
        yield
    finally:
        _take_away()
        sys.modules.update(foreign)


def _is_ours(module: types.ModuleType | None) -> bool:
    return list(getattr(module, "__path__", ()))[:1] == [str(folder())]


def _take_away() -> dict[str, types.ModuleType]:
    names = [n for n in sys.modules if n == NAME or n.startswith(f"{NAME}.")]
    return {name: sys.modules.pop(name) for name in names}
