"""What a user can do wrong."""

import importlib.util
import pathlib
import shlex
import sys


class UserError(ValueError):
    """One sentence: what was wrong, where, what to do. Commands print it and stop."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class TransientError(UserError):
    """Nobody's mistake: the same command may get through when it is started again."""


def pip_install(*packages: str) -> str:
    """The command that installs packages where this program runs.

    The ``pip`` on somebody's path may be that of another environment.
    """
    command = (sys.executable or "python", "-m", "pip", "install", *packages)
    return " ".join(map(shlex.quote, command))


def printable(text: str) -> str:
    """Text without halves of characters, which no terminal and no file takes.

    They stand for bytes of file names that are no UTF-8, and become ``\\udcff``.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def refuse_foreign_pipeline() -> None:
    """Looks which ``input_pipeline`` would be imported, before anything imports it.

    Raises:
      UserError: another package of that name comes before ours on Python's path.
    """
    ours = pathlib.Path(__file__).parents[1] / "input_pipeline"
    spec = importlib.util.find_spec("input_pipeline")
    places = spec.submodule_search_locations or [spec.origin] if spec else []
    found = [pathlib.Path(place).resolve() for place in places]
    if ours.resolve() not in found:
        theirs = found[0] if found else "nothing"
        raise UserError(
            f"`import input_pipeline` finds {theirs} and not {ours}, which mlseg_jax "
            f"needs; rename that one, or start Python where it is not on the path."
        )
