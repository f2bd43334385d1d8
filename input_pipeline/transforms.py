"""Augmentation of one example, in NumPy and cv2, with an explicit random generator.

Follows the recipe of mmsegmentation that the paper trains with: random resize, random
crop, flip, photometric distortion, pad. Labels are only ever indexed, never computed
with, so they stay exact int32 for any number of classes.
"""

from collections.abc import Callable

import cv2
import numpy as np

from mlseg_jax.typing import IGNORE


def random_resize_crop_flip(
    example: dict,
    rng: np.random.Generator,
    *,
    crop_size: int | tuple[int, int],
    base_size: tuple[int, int],
    scale_range: tuple[float, float] = (0.5, 2.0),
    max_class_share: float = 0.75,
    num_retries: int = 10,
    flip_rate: float = 0.5,
    pad_value: tuple[int, int, int] = (124, 116, 104),
    distortion: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
) -> dict:
    """Resizes, crops, flips and pads an example to a fixed size.

    Image and label map are sampled at the same points: pixel centres lie at half
    integers, the image is bilinear and the label map nearest.

    Args:
      example: ``image`` uint8 ``[H W 3]`` and ``label_map`` int32 ``[H W]``.
      rng: source of all randomness.
      crop_size: pixels of the result, (height, width) or the side of a square.
      base_size: (long side, short side) in pixels that the image is fitted into, with
        its aspect kept, before the random scale.
      scale_range: the random scale is uniform between these two.
      max_class_share: a crop is accepted if it has two classes and the largest covers
        less than this share of its pixels that are not IGNORE.
      num_retries: crops that are drawn again before one is taken unchecked.
      flip_rate: probability of a horizontal flip.
      pad_value: RGB of the padding right and below, where the label is IGNORE.
      distortion: changes the colours before padding, so that padding keeps its colour.

    Returns:
      The example with the two arrays replaced by ones of ``crop_size``.
    """
    crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    image, label_map = example["image"], example["label_map"]
    scale = rng.uniform(*scale_range)
    resized = _fitted_size(image.shape[:2], [int(side * scale) for side in base_size])
    rows = _nearest_indices(image.shape[0], resized[0])
    columns = _nearest_indices(image.shape[1], resized[1])
    height, width = min(crop[0], resized[0]), min(crop[1], resized[1])
    for retry in range(num_retries + 1):
        top = rng.integers(resized[0] - height + 1)
        left = rng.integers(resized[1] - width + 1)
        labels = label_map[rows[top : top + height]].take(
            columns[left : left + width], axis=1
        )
        if retry == num_retries or _is_varied(labels, max_class_share):
            break
    flip = rng.random() < flip_rate
    window = _warp(image, resized, (top, left, height, width), flip)
    if distortion is not None:
        window = distortion(window, rng)
    return {
        **example,
        "image": _pad(window, crop, pad_value),
        "label_map": _pad(labels[:, ::-1] if flip else labels, crop, IGNORE),
    }


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability 0.5.

    Brightness ±32, contrast and saturation times 0.5 to 1.5, hue ±18 of OpenCV's 180
    steps; contrast comes before or after the colours by a coin flip. Values are cut to
    0..255 after each step, as in the recipe; saturation and hue share one round trip
    through HSV, where the recipe makes two.

    Args:
      image: uint8 ``[H W 3]``, RGB.
      rng: source of all randomness.

    Returns:
      uint8 ``[H W 3]``.
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
    contrast_first = rng.random() < 0.5
    # All 256 values of a channel instead of all pixels: a table is exact and fast.
    steps = np.arange(256, dtype=np.uint8)
    table = _scale(steps, 1.0, brightness)
    if contrast_first:
        table = _scale(table, contrast, 0.0)
    if not np.array_equal(table, steps):
        image = cv2.LUT(image, table)
    if saturation != 1.0 or hue != 0:
        # OpenCV's hue is 0..179; the rest of that table is never used.
        hues = ((steps.astype(np.int32) + hue) % 180).astype(np.uint8)
        hsv_table = np.stack([hues, _scale(steps, saturation, 0.0), steps], axis=-1)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), hsv_table[None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and contrast != 1.0:
        image = cv2.LUT(image, _scale(steps, contrast, 0.0))
    return image


def resize_for_test(image: np.ndarray, base_size: tuple[int, int]) -> np.ndarray:
    """Fits an image into (long side, short side) with its aspect kept, bilinear.

    Args:
      image: uint8 ``[H W 3]``.
      base_size: (long side, short side) in pixels.

    Returns:
      uint8 ``[h w 3]``.
    """
    height, width = _fitted_size(image.shape[:2], base_size)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _fitted_size(size: tuple[int, int], base_size) -> tuple[int, int]:
    """Returns (height, width) of `size` fitted into (long side, short side)."""
    factor = min(max(base_size) / max(size), min(base_size) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def _nearest_indices(old: int, new: int) -> np.ndarray:
    """Returns, for each of `new` pixels, which of `old` holds its centre."""
    # cv2's INTER_NEAREST drops the half pixel and would shift labels against the image.
    centres = (np.arange(new) + 0.5) * (old / new)
    return np.minimum(centres.astype(np.int64), old - 1)


def _is_varied(labels: np.ndarray, max_class_share: float) -> bool:
    counts = np.bincount((labels + 1).ravel())[1:]  # Bin 0 is IGNORE.
    return (
        np.count_nonzero(counts) > 1 and counts.max() < max_class_share * counts.sum()
    )


def _warp(
    image: np.ndarray,
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    flip: bool,
) -> np.ndarray:
    """Returns the window (top, left, height, width) of the resized image."""
    top, left, height, width = window
    scale_y, scale_x = image.shape[0] / resized[0], image.shape[1] / resized[1]
    # From pixel (x, y) of the window to the image; pixel centres are at +0.5.
    first_x, step_x = (left + 0.5) * scale_x - 0.5, scale_x
    if flip:
        first_x, step_x = first_x + (width - 1) * scale_x, -scale_x
    matrix = np.array(
        [[step_x, 0.0, first_x], [0.0, scale_y, (top + 0.5) * scale_y - 0.5]]
    )
    return cv2.warpAffine(
        image,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _pad(values: np.ndarray, size: tuple[int, int], pad_value) -> np.ndarray:
    """Returns the array in the upper left of one of (height, width) `size`."""
    height, width = values.shape[:2]
    padded = np.empty((*size, *values.shape[2:]), values.dtype)
    padded[:height, :width] = values
    padded[:height, width:] = pad_value
    padded[height:] = pad_value
    return padded


def _scale(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Returns ``values * factor + offset``, cut to uint8."""
    scaled = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(scaled, 0, 255).astype(np.uint8)
