"""What is known of a kind of weight file."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained.mapping import Dropped, Row

Arrays = dict[str, np.ndarray]


def _as_they_are(arrays: Arrays) -> Arrays:
    return arrays


@dataclasses.dataclass(frozen=True)
class Format:
    """Weights of one kind of model from one source.

    Attributes:
      title: for people.
      marks: regular expressions; a file of this format has a name for each, and more
        than one where a name may be missing by mistake.
      rows: its table, given a configuration.
      licence: of the code it comes from, and where the weights' own terms are.
      part: beginning of our paths that it fills; "" is the whole model.
      optional: regular expression of our paths that such a file need not fill.
      dropped: names it may have that we do not use.
      rename: names as the table has them, from all that the source ever wrote.
      facts: keys of the configuration that the source computes with.
      classes: possible names of the array of the classes: [C, D], [1, C, D] or, as a
        1x1 convolution, [C, D, 1, 1].
    """

    title: str
    marks: tuple[str, ...]
    rows: Callable[[ml_collections.ConfigDict], list[Row]]
    licence: str
    part: str = ""
    optional: str = ""
    dropped: tuple[Dropped, ...] = ()
    rename: Callable[[Arrays], Arrays] = _as_they_are
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def renamed(self, arrays: Arrays, file_name: str) -> Arrays:
        """Arrays by the table's names; what the source fused is taken apart.

        Raises:
          UserError: an array cannot be what its name says.
        """
        try:
            return self.rename(arrays)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{file_name} is damaged: an array has a shape that its name cannot "
                f"have ({error}); get it again."
            ) from error

    def fits(self, names: Sequence[str]) -> bool:
        return all(
            any(re.fullmatch(mark, name) for name in names) for mark in self.marks
        )

    def num_classes(self, arrays: Arrays) -> int | None:
        for name in self.classes:
            if name in arrays and arrays[name].ndim >= 2:
                shape = arrays[name].shape
                return shape[0] if len(shape) == 4 else shape[-2]
        return None
