"""The recipes that come with the library, found by their path and not by their name.

A checkout has them in ``configs/``, an installed package carries them as data. They
import one another as ``from configs import ...``; a project that uses the library may
have a package of that name itself, so the name is theirs only while a recipe is loaded.
"""

import contextlib
import importlib
import pathlib
import sys
import types
from collections.abc import Iterator

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
