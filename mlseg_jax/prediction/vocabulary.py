"""Which classes a call may find, and how many: what it changes of the selection."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import no_type_check

import numpy as np

from input_pipeline.info import DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.settings.kinds import COUNT, PROBABILITY, check
from mlseg_jax.typing import Bool


@no_type_check  # what is of another type is said in a sentence
def narrowed(
    policy: SelectionPolicy,
    info: DatasetInfo,
    k: int | None,
    allowed: str | Iterable[str] | None,
    minimum_score: float | None,
    cumulative: float | None,
) -> tuple[SelectionPolicy, Bool[np.ndarray, "C"] | None]:
    """The policy with what a call says otherwise, and the classes it allows.

    Arguments are those of `segmenter.Segmenter.__call__`; None changes nothing.

    Raises:
      UserError: an unknown class name, or a number out of its range.
    """
    if k is not None:
        check("k", k, COUNT)
        policy = dataclasses.replace(policy, k=int(k))
    mask = None
    if allowed is not None:
        if not isinstance(allowed, Iterable) or isinstance(allowed, bytes):
            raise UserError(f"allowed is {allowed!r}; give a list of names of classes.")
        names = [allowed] if isinstance(allowed, str) else list(allowed)
        mask = np.zeros(info.num_classes, bool)
        mask[[class_id(info, name) for name in names]] = True
        if not mask.any():
            raise UserError("The list of allowed classes is empty; name some.")
        # Selecting among the allowed also restricts a baseline, which selects all.
        count = int(mask.sum())
        if policy.name == "complete":
            policy = SelectionPolicy("top_k", count)
        policy = dataclasses.replace(policy, k=min(policy.k, count))
    dynamic = {"minimum_score": minimum_score, "cumulative": cumulative}
    given = {key: value for key, value in dynamic.items() if value is not None}
    for key, value in given.items():
        check(key, value, PROBABILITY)
        given[key] = float(value)
    return dataclasses.replace(policy, **given), mask


@no_type_check
def class_id(info: DatasetInfo, name: str) -> int:
    """The id of a class by its name; raises UserError."""
    names = info.class_names
    if isinstance(name, str) and name in names:
        return names.index(name)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, near))}?"
    if not near:
        hint = "the names are in `.info.class_names`."
    raise UserError(f"There is no class {name!r}; {hint}")
