"""What a user can do wrong."""

import importlib.util
import pathlib


class UserError(ValueError):
    """One sentence: what was wrong, where, what to do. Commands print it and stop."""


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
