"""Segments of a batch of crops as targets of the queries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mlseg_jax.label_selection import Selection, labels_to_ranks
from mlseg_jax.losses.regions.points import Masks
from mlseg_jax.metrics.label_recall import label_histogram
from mlseg_jax.typing import IGNORE, Array, Bool, Float, Int, UInt8

BatchMasks = Int[Array, "B *T H W"] | UInt8[Array, "B M H W8"]
"""Where the segments of each example are.

Disjoint segments: a map of their numbers, 0..M-1, ``IGNORE`` where there is none; of a
clip one for each frame, in which a segment has the same number throughout.
Overlapping ones: a stack of bits, each row padded to whole octets (``numpy.packbits``).
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What queries are matched with.

    Attributes:
      ranks: the rank of each segment's class in the selection; ``IGNORE`` where not
        valid.
      valid: False for padding, for what is not in the crop, and for segments whose
        class was not selected.
      masks: see `BatchMasks`. Pixels without a valid segment are background of all.
      void: pixels that count nowhere; None as released, where void is background.
      size: H, W of the crop or frame, which a stack of bits does not tell.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    ranks: Int[Array, "B M"]
    valid: Bool[Array, "B M"]
    masks: BatchMasks
    void: Bool[Array, "B *T H W"] | None
    size: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def frames(self) -> tuple[Array, Array | None]:
        """``masks`` and ``void`` of one example by frame; a picture is a clip of
        one.
        """
        if is_disjoint(self.masks) and self.masks.ndim == 3:
            return self.masks, self.void
        return self.masks[None], None if self.void is None else self.void[None]


def is_disjoint(masks: BatchMasks | Masks) -> bool:
    """Whether they are maps of numbers, and no stacks of bits."""
    return masks.dtype != jnp.uint8


def make_targets(
    class_ids: Int[Array, "B M"],
    areas: Int[Array, "B M"],
    masks: BatchMasks,
    size: tuple[int, int],
    selection: Selection,
    *,
    ignore_void: bool = False,
) -> Targets:
    """Targets of the segments that are in the crop and whose class was selected.

    Segments that the crop has emptied are dropped, for a mask without a pixel ruins
    training (masks.md 9, item 5). ``ignore_void`` leaves the pixels without any segment
    out of losses and costs of disjoint segments; in a stack void is not known.
    """
    ranks = labels_to_ranks(class_ids, selection)
    valid = (areas > 0) & (ranks != IGNORE)
    void = masks == IGNORE if ignore_void and is_disjoint(masks) else None
    return Targets(jnp.where(valid, ranks, IGNORE), valid, masks, void, size)


def segment_areas(masks: BatchMasks, num_segments: int) -> Int[Array, "B M"]:
    """Pixels of each segment in the crop, or in all frames of the clip."""
    if is_disjoint(masks):
        batch, *_, width = masks.shape
        return label_histogram(masks.reshape(batch, -1, width), num_segments)
    return jnp.sum(jax.lax.population_count(masks), axis=(2, 3), dtype=jnp.int32)


def class_areas(
    class_ids: Int[Array, "B M"], areas: Int[Array, "B M"], num_classes: int
) -> Int[Array, "B C"]:
    """Pixels of each class, for the oracle selection and, where > 0, for presence.

    As `label_histogram` of a label map, but pixels of overlapping segments count twice.
    Segments of class ``IGNORE`` count nowhere.
    """
    # ``IGNORE`` would be the last class.
    ids = jnp.where(class_ids == IGNORE, num_classes, class_ids)

    def count(ids: Int[Array, "M"], areas: Int[Array, "M"]) -> Int[Array, "C"]:
        return jnp.zeros(num_classes, jnp.int32).at[ids].add(areas, mode="drop")

    return jax.vmap(count)(ids, areas)


def segment_pixels(
    masks: Masks, size: tuple[int, int], segments: Int[Array, "G"]
) -> Float[Array, "G H W"]:
    """Whole masks of a few segments of one image, 0 or 1."""
    if masks.ndim == 2:
        inside = masks[None] == segments[:, None, None]
    else:
        inside = jnp.unpackbits(masks[segments], axis=-1, count=size[1])
    return inside.astype(jnp.float32)


def nearest_pixels(
    masks: Masks, size: tuple[int, int], grid: tuple[int, int], num_segments: int
) -> Float[Array, "M h w"]:
    """All masks of one image on a coarse grid, as MaskFormer matches (masks.md 3.3)."""
    rows, columns = nearest_places(size, grid)
    if masks.ndim == 2:
        segments = jnp.arange(num_segments)[:, None, None]
        inside = masks[rows[:, None], columns[None]][None] == segments
    else:
        octets = masks[:, rows[:, None], columns[None] // 8]
        inside = octets >> (7 - columns % 8).astype(np.uint8)[None, None] & 1
    return inside.astype(jnp.float32)


def nearest_places(
    size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that PyTorch's nearest interpolation takes."""

    def places(length: int, count: int) -> np.ndarray:
        scale = np.float32(length) / np.float32(count)
        source = (np.arange(count, dtype=np.float32) * scale).astype(np.int32)
        return np.minimum(source, length - 1)

    return places(size[0], grid[0]), places(size[1], grid[1])
