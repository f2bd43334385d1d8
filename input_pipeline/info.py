"""What a data set says about itself, and the one format of an example.

An example is a dict of NumPy arrays:

* ``image``: uint8 ``[H W 3]``, RGB.
* ``label_map``: int32 ``[H W]``, class ids ``0..C-1`` or ``IGNORE`` (-1).
* ``name``: str, unique within the split (a file stem where there is a file).

A source is anything with ``info``, ``__len__`` and ``__getitem__(index) -> example``,
so that grain can read it by random access. Those that were counted when they were
prepared also have ``presence``, see `class_statistics.Presence`.
"""

import dataclasses

from mlseg_jax.errors import UserError
from mlseg_jax.typing import MAX_CLASSES


class DataError(UserError):
    """Something is wrong with the user's data; the message is one sentence.

    Attributes:
      kind: what is wrong, such as "unreadable", "size" or "unmapped"; faults are
        counted by it.
      path: the file, where several faults are told in one.
      values: the raw values (or colours) without a class, where that is wrong.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "unreadable",
        values: tuple = (),
        path: str = "",
    ):
        super().__init__(message)
        self.kind = kind
        self.path = path
        self.values = values


def raise_fault(fault: DataError) -> None:
    """What sources do with a fault of their listing unless told otherwise."""
    raise fault


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set that models, metrics and pictures need.

    Attributes:
      name: short name, e.g. ``"sign_scenes"``.
      class_names: name of each class, by class id; its length is C.
      is_thing: for each class, whether it is countable (thing) or a region (stuff).
      raw_values: for each class, what stands for it in the files it comes from: a value
        of masks, a colour "#rrggbb" or the id of a category; None where that is not
        known. Where several do, the first.
    """

    name: str
    class_names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    raw_values: tuple[int | str, ...] | None = dataclasses.field(
        default=None, compare=False
    )

    def __post_init__(self):
        """Raises `DataError` where there are more classes than ids."""
        if self.num_classes > MAX_CLASSES:
            raise DataError(
                f"Data set {self.name!r} has {self.num_classes:,} classes, but label "
                f"maps of 16 bits hold at most {MAX_CLASSES:,}; use fewer."
            )
        if len(self.class_names) != len(self.is_thing):
            raise ValueError(
                f"Data set {self.name!r} names {len(self.class_names)} classes but "
                f"says thing or stuff of {len(self.is_thing)}; both need one entry "
                f"a class."
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
