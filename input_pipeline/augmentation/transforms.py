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
    class_weights: np.ndarray | None = None,
    rare_crop_rate: float = 0.0,
) -> dict:
    """Resizes, crops, flips and pads an example to a fixed size.

    Image and label map are sampled at the same points: pixel centres lie at half
    integers, the image is bilinear and the label map nearest. The picture is resized
    whole, as in the recipe and bit for bit the same: cv2.resize is faster than a warp
    of the crop alone, even at twice the size.

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
      class_weights: float ``[C]``, how much each class is wanted in rare-class crops.
      rare_crop_rate: probability that the crop must hold a pixel of a class drawn from
        those of the picture by weight.

    Returns:
      The example with the two arrays replaced by ones of ``crop_size``, and
      ``image_size`` int32 ``[2]``: rows and columns of it that are no padding.
    """
    crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    image, label_map = example["image"], example["label_map"]
    scale = rng.uniform(*scale_range)
    resized = fitted_size(image.shape[:2], [int(side * scale) for side in base_size])
    rows = _nearest_indices(image.shape[0], resized[0])
    columns = _nearest_indices(image.shape[1], resized[1])
    height, width = min(crop[0], resized[0]), min(crop[1], resized[1])
    aim = (None, None)
    if rare_crop_rate > 0 and rng.random() < rare_crop_rate:
        aim = _rare_pixel(label_map, class_weights, resized, rng)
    for retry in range(num_retries + 1):
        top = _draw_offset(resized[0], height, aim[0], rng)
        left = _draw_offset(resized[1], width, aim[1], rng)
        labels = label_map[rows[top : top + height]].take(
            columns[left : left + width], axis=1
        )
        if retry == num_retries or _is_varied(labels, max_class_share):
            break
    flip = rng.random() < flip_rate
    window = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)
    window = window[top : top + height, left : left + width]
    if flip:
        window = cv2.flip(window, 1)
    if distortion is not None:
        window = distortion(window, rng)
    return {
        **example,
        "image": _pad(window, crop, pad_value),
        "image_size": np.asarray([height, width], np.int32),
        "label_map": _pad(labels[:, ::-1] if flip else labels, crop, IGNORE),
    }


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability 0.5.

    Brightness ±32, contrast and saturation times 0.5 to 1.5, hue ±18 of OpenCV's 180
    steps; contrast comes before or after the colours by a coin flip. Values are cut to
    whole numbers in 0..255 after each step, as in the recipe.

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
    if saturation != 1.0:
        image = _map_hsv(image, 1, _scale(steps, saturation, 0.0))
    if hue != 0:
        # OpenCV's hue is 0..179; the rest of the table is never used.
        hues = ((steps.astype(np.int32) + hue) % 180).astype(np.uint8)
        image = _map_hsv(image, 0, hues)
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
    height, width = fitted_size(image.shape[:2], base_size)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def fitted_size(size: tuple[int, int], base_size) -> tuple[int, int]:
    """Returns (height, width) of `size` fitted into (long side, short side)."""
    factor = min(max(base_size) / max(size), min(base_size) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def _nearest_indices(old: int, new: int) -> np.ndarray:
    """Returns, for each of `new` pixels, which of `old` holds its centre."""
    # cv2's INTER_NEAREST drops the half pixel and would shift labels against the image.
    centres = (np.arange(new) + 0.5) * (old / new)
    return np.minimum(centres.astype(np.int64), old - 1)


def _draw_offset(
    length: int, window: int, aim: int | None, rng: np.random.Generator
) -> int:
    """First pixel of a window along an axis; it holds the pixel ``aim`` if given."""
    low, high = 0, length - window
    if aim is not None:
        low, high = max(low, aim - window + 1), min(high, aim)
    return int(rng.integers(low, high + 1))


def _rare_pixel(
    label_map: np.ndarray,
    class_weights: np.ndarray,
    resized: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int | None, int | None]:
    """Row and column, in the resized picture, of a pixel of a class drawn by weight.

    Rare classes are drawn more often by their weights, and all pixels of the class that
    is drawn are equally likely; (None, None) if the picture has no class of any weight.
    """
    class_ids = np.flatnonzero(_count_labels(label_map)[1:])
    weights = class_weights[class_ids]
    if not weights.sum() > 0:
        return None, None
    class_id = rng.choice(class_ids, p=weights / weights.sum())
    pixels = np.flatnonzero(label_map == class_id)
    row, column = divmod(int(pixels[rng.integers(len(pixels))]), label_map.shape[1])
    return (
        (2 * row + 1) * resized[0] // (2 * label_map.shape[0]),
        (2 * column + 1) * resized[1] // (2 * label_map.shape[1]),
    )


def _count_labels(labels: np.ndarray) -> np.ndarray:
    """Number of pixels by class id, after that of IGNORE in the first place."""
    # Of 16 bits, because cv2 counts these three times as fast as NumPy counts 32.
    shifted = (labels + 1).astype(np.uint16)
    size = int(shifted.max()) + 1
    return cv2.calcHist([shifted], [0], None, [size], [0, size]).ravel()


def _is_varied(labels: np.ndarray, max_class_share: float) -> bool:
    counts = _count_labels(labels)[1:]
    return (
        np.count_nonzero(counts) > 1 and counts.max() < max_class_share * counts.sum()
    )


def _map_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Applies a table uint8 [256] to one channel of the image in OpenCV's HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


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
