"""Augmentation of a classifier of whole pictures: Query2Label's (method.md 8.2).

Pillow's operations are the definition, as in the ``randaugment`` package that the
release used; here every random choice comes from the example's own generator.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mlseg_jax.typing import UInt8

NUM_MAGNITUDES = 9
APPLY_RATE = 0.5
GREY = (128, 128, 128)
"""What moves into the picture from outside."""
CUTOUT_COLOUR = (125, 122, 113)


def cutout(
    image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator, share: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Paints a square of one random colour, its centre anywhere in the picture.

    Its side is ``share`` of the shorter side; what lies outside is cut off.
    """
    height, width = image.shape[:2]
    side = int(share * min(height, width))
    y, x = rng.integers(height), rng.integers(width)
    image = image.copy()
    rows = slice(max(0, y - side // 2), y - side // 2 + side)
    columns = slice(max(0, x - side // 2), x - side // 2 + side)
    image[rows, columns] = rng.integers(0, 256, 3)
    return image


def rand_augment(
    image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Two operations, each drawn from all of `OPERATIONS` times nine magnitudes, and
    each applied with probability a half.
    """
    picture = Image.fromarray(image)
    for _ in range(2):
        operation = OPERATIONS[rng.integers(len(OPERATIONS))]
        magnitude = (1 + rng.integers(NUM_MAGNITUDES)) / NUM_MAGNITUDES
        if rng.random() < APPLY_RATE:
            picture = operation(picture, magnitude, rng)
    return np.asarray(picture)


# Operations of a picture, a magnitude (1/9, 2/9 .. 1) and a generator for the sign.


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _invert(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    return ImageOps.invert(picture)


def _cutout(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    """A square of at most 20 pixels, whatever the size of the picture."""
    half = round(20 * magnitude) // 2
    x, y = (int(rng.integers(side)) for side in picture.size)
    picture = picture.copy()
    box = [max(0, x - half), max(0, y - half), x + half - 1, y + half - 1]
    ImageDraw.Draw(picture).rectangle(box, fill=CUTOUT_COLOUR)
    return picture


def _autocontrast(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    return ImageOps.equalize(picture)


def _posterize(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    return ImageOps.posterize(picture, round(8 - 4 * magnitude))


def _solarize(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    return ImageOps.solarize(picture, 256 * (1 - magnitude))


def _affine(picture: Image.Image, matrix: tuple, resample) -> Image.Image:
    affine = Image.Transform.AFFINE
    return picture.transform(picture.size, affine, matrix, resample, fillcolor=GREY)


def _shear_x(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    matrix = (1, 0.3 * magnitude * _sign(rng), 0, 0, 1, 0)
    return _affine(picture, matrix, Image.Resampling.BICUBIC)


def _shear_y(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    matrix = (1, 0, 0, 0.3 * magnitude * _sign(rng), 1, 0)
    return _affine(picture, matrix, Image.Resampling.BICUBIC)


def _translate_x(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    shift = 150 / 331 * magnitude * picture.width * _sign(rng)
    return _affine(picture, (1, 0, shift, 0, 1, 0), Image.Resampling.NEAREST)


def _translate_y(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    shift = 150 / 331 * magnitude * picture.height * _sign(rng)
    return _affine(picture, (1, 0, 0, 0, 1, shift), Image.Resampling.NEAREST)


def _rotate(picture: Image.Image, magnitude: float, rng) -> Image.Image:
    """Always anticlockwise, as in the package."""
    return picture.rotate(30 * magnitude, fillcolor=GREY)


def _enhance(enhancer):
    """Between the picture and its ``enhancer``'s other extreme, or away from it."""

    def operation(picture: Image.Image, magnitude: float, rng) -> Image.Image:
        return enhancer(picture).enhance(1 + 0.9 * magnitude * _sign(rng))

    return operation


OPERATIONS = (
    _invert,
    _cutout,
    _enhance(ImageEnhance.Sharpness),
    _autocontrast,
    _posterize,
    _shear_x,
    _translate_x,
    _translate_y,
    _shear_y,
    _rotate,
    _equalize,
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Color),
    _solarize,
    _enhance(ImageEnhance.Brightness),
)
