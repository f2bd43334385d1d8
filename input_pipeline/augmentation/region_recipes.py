"""How MaskFormer and Mask2Former resize, crop and mirror pictures in training.

As detectron2 does it: Pillow resizes, also where a picture shrinks, and sizes are
rounded by its rules (masks.md sections 3.4 and 5.3, method.md section 12.4).
"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.augmentation.transforms import varied_crop
from input_pipeline.augmentation.views import View, resize_pillow, short_side_size

PAD_COLOUR = (128, 128, 128)
"""What both pad with before they normalise."""

DETR_SHORT_SIDES = (400, 500, 600)
DETR_CROP_SIDES = (384, 600)


def short_side(
    example: dict,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    short_sides: Sequence[int],
    max_side: int,
    max_class_share: float = 1.0,
    flip_rate: float = 0.5,
) -> View:
    """ADE20K: one of some short sides, a crop, a flip.

    Args:
      example: ``image`` uint8 ``[H W 3]`` and ``label_map`` int32 ``[H W]``.
      rng: source of all randomness.
      crop_size: largest height and width of the result.
      short_sides: each is as likely.
      max_side: longest side after resizing.
      max_class_share: a crop is accepted if it has two classes and the largest covers
        less than this share; the tenth is taken unchecked. 1 checks nothing.
      flip_rate: probability of a horizontal flip.
    """
    view = _resized_by_choice(View.whole(example["image"]), rng, short_sides, max_side)
    view = varied_crop(
        example,
        view,
        rng,
        crop_size,
        max_class_share=max_class_share,
        num_retries=9 if max_class_share < 1 else 0,
    )
    return view.mirrored() if rng.random() < flip_rate else view


def large_scale_jitter(
    example: dict,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    scale_range: tuple[float, float] = (0.1, 2.0),
    flip_rate: float = 0.5,
) -> View:
    """COCO, Mask2Former: a flip, a random size relative to the crop's, a crop.

    One random number says where the crop lies along both axes, as released.
    """
    view = View.whole(example["image"])
    if rng.random() < flip_rate:
        view = view.mirrored()
    target = np.float64(crop_size) * rng.uniform(*scale_range)
    size = np.round(np.float64(view.size) * (target / view.size).min()).astype(int)
    height, width = (max(1, int(side)) for side in size)
    view = view.resized((height, width), resize_pillow)
    room = np.maximum(np.subtract(view.size, crop_size), 0)
    top, left = np.round(room * rng.random()).astype(int).tolist()
    return view.cropped(top, left, *crop_size)


def detr(
    example: dict,
    rng: np.random.Generator,
    *,
    short_sides: Sequence[int],
    max_side: int,
    flip_rate: float = 0.5,
    first_short_sides: Sequence[int] = DETR_SHORT_SIDES,
    crop_sides: tuple[int, int] = DETR_CROP_SIDES,
) -> View:
    """COCO, MaskFormer: a flip, half the time a crop of a first size, a random size.

    Args:
      example: ``image`` uint8 ``[H W 3]``.
      rng: source of all randomness.
      short_sides: each is as likely.
      max_side: longest side of the result.
      flip_rate: probability of a horizontal flip.
      first_short_sides: short sides before the crop.
      crop_sides: least and largest height and width of the crop.
    """
    view = View.whole(example["image"])
    if rng.random() < flip_rate:
        view = view.mirrored()
    if rng.random() < 0.5:
        view = _resized_by_choice(view, rng, first_short_sides, None)
        low, high = crop_sides
        size = [int(rng.integers(min(s, low), min(s, high) + 1)) for s in view.size]
        top, left = (
            int(rng.integers(length - side + 1))
            for length, side in zip(view.size, size, strict=True)
        )
        view = view.cropped(top, left, *size)
    return _resized_by_choice(view, rng, short_sides, max_side)


def _resized_by_choice(
    view: View,
    rng: np.random.Generator,
    short_sides: Sequence[int],
    max_side: int | None,
) -> View:
    chosen = int(short_sides[rng.integers(len(short_sides))])
    size = short_side_size(view.size, chosen, max_side)
    return view.resized(size, resize_pillow)
