"""Augmentation of one example, in NumPy and cv2, with an explicit random generator.

Follows the recipe of mmsegmentation that the paper trains with: random resize, random
crop, flip, photometric distortion, pad.
"""

import cv2
import numpy as np

from input_pipeline.augmentation.views import View, fitted_size, resize_cv2


def random_resize_crop_flip(
    example: dict,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    base_size: tuple[int, int],
    scale_range: tuple[float, float] = (0.5, 2.0),
    max_class_share: float = 0.75,
    num_retries: int = 10,
    flip_rate: float = 0.5,
    class_weights: np.ndarray | None = None,
    rare_crop_rate: float = 0.0,
) -> View:
    """A piece of a picture at a random scale, at most of a fixed size.

    Pixel centres lie at half integers, the image is bilinear and labels are nearest.
    The picture is resized whole, as in the recipe and bit for bit the same: cv2.resize
    is faster than a warp of the crop alone, even at twice the size.

    Args:
      example: ``image`` uint8 ``[H W 3]`` and ``label_map`` int32 ``[H W]``.
      rng: source of all randomness.
      crop_size: largest height and width of the result.
      base_size: (long side, short side) in pixels that the image is fitted into, with
        its aspect kept, before the random scale.
      scale_range: the random scale is uniform between these two.
      max_class_share, num_retries: see `varied_crop`.
      flip_rate: probability of a horizontal flip.
      class_weights: float ``[C]``, how much each class is wanted in rare-class crops.
      rare_crop_rate: probability that the crop must hold a pixel of a class drawn from
        those of the picture by weight.
    """
    scale = rng.uniform(*scale_range)
    base_size = [int(side * scale) for side in base_size]
    view = View.whole(example["image"])
    view = view.resized(fitted_size(view.size, base_size), resize_cv2)
    aim = (None, None)
    if rare_crop_rate > 0 and rng.random() < rare_crop_rate:
        aim = _rare_pixel(example["label_map"], class_weights, view.size, rng)
    view = varied_crop(
        example,
        view,
        rng,
        crop_size,
        max_class_share=max_class_share,
        num_retries=num_retries,
        aim=aim,
    )
    return view.mirrored() if rng.random() < flip_rate else view


def varied_crop(
    example: dict,
    view: View,
    rng: np.random.Generator,
    crop_size: tuple[int, int],
    *,
    max_class_share: float,
    num_retries: int = 10,
    aim: tuple[int | None, int | None] = (None, None),
) -> View:
    """A window of at most ``crop_size`` anywhere in a view.

    Args:
      example: has the ``label_map``.
      view: of its picture.
      rng: source of all randomness.
      crop_size: largest height and width.
      max_class_share: a crop is accepted if it has two classes and the largest covers
        less than this share of its pixels that are not IGNORE.
      num_retries: crops that are drawn again before one is taken unchecked; 0 checks
        none.
      aim: row and column that must be inside.
    """
    height, width = (min(pair) for pair in zip(crop_size, view.size, strict=True))
    for retry in range(num_retries + 1):
        top = _draw_offset(view.size[0], height, aim[0], rng)
        left = _draw_offset(view.size[1], width, aim[1], rng)
        window = view.cropped(top, left, height, width)
        if retry == num_retries:
            break
        window = window.with_labels(example["label_map"])
        if _is_varied(window.labels, max_class_share):
            break
    return window


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


def _scale(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Returns ``values * factor + offset``, cut to uint8."""
    scaled = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(scaled, 0, 255).astype(np.uint8)
