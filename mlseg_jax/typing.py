"""Dimension letters and array types used in every signature.

Letters (one meaning each, everywhere):

* ``B`` example, ``T`` frame, ``H W`` input pixels, ``h w`` feature grid, ``L`` tokens
* ``D`` width, ``C`` complete classes, ``K`` selected labels (ranks)
* ``N`` object queries, ``M`` padded segments, ``P`` sampled points

Indices of classes are ``class_ids``; positions in a selection are ``ranks``. Mixing the
two is this method's typical bug, so every name says which one it holds.
"""

from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt, UInt8

IGNORE = -1
"""Label of pixels that have no class: never trained on, never scored."""

VOID = 0
"""Segment id of pixels without a segment; those of segments count from 1."""

MAX_CLASSES = 65_535
"""Most classes there can be: files and label maps have 16 bits, in which IGNORE is a
value beside them.
"""

Length = int | Int[Array, "*shape"]
"""Rows or columns: a number, or one for each example of a batch."""

__all__ = [
    "IGNORE",
    "MAX_CLASSES",
    "VOID",
    "Array",
    "Bool",
    "DTypeLike",
    "Float",
    "Int",
    "Length",
    "PRNGKeyArray",
    "PyTree",
    "UInt",
    "UInt8",
]
