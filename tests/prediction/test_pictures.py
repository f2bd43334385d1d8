"""What counts as a picture in Python, and that the same picture is one array."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from input_pipeline.files.images import read_image
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.pictures import as_picture, as_pictures


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def encoded(picture, form="png", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


RGB = noise(5, 7, 3)
GREY = np.repeat(RGB[:, :, :1], 3, axis=2)
RGBA = np.concatenate([RGB, noise(5, 7, 1)], axis=2)


@pytest.mark.parametrize(
    "given, expected",
    [
        (RGB, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (RGB[:, :, 0], GREY),
        (RGB[:, :, :1], GREY),
        (RGBA, RGB),
        (jnp.asarray(RGB), RGB),
        (jnp.asarray(RGB[:, :, 0]), GREY),
        (np.ma.masked_array(RGB), RGB),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB[:, :, 0]), GREY),
        (Image.fromarray(RGBA), RGB),
        (Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 256 + 3), GREY),
        (encoded(Image.fromarray(RGB)), RGB),
        (bytearray(encoded(Image.fromarray(RGB))), RGB),
        (encoded(Image.fromarray(RGB[:, :, 0])), GREY),
    ],
)
def test_the_same_picture_in_many_forms(given, expected):
    picture = as_picture(given)
    assert type(picture) is np.ndarray and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)
    (alone,), single = as_pictures(given)
    assert single
    np.testing.assert_array_equal(alone, expected)
    for many in ([given, RGB], (given, RGB)):
        (first, second), single = as_pictures(many)
        assert not single
        np.testing.assert_array_equal(first, expected)
        np.testing.assert_array_equal(second, RGB)


def test_pil_pictures_of_other_modes_are_what_their_files_are(tmp_path):
    for mode in ("1", "P", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa", "I;16B"):
        source = Image.fromarray(RGB[:, :, 0]) if mode == "I;16B" else None
        picture = source or Image.fromarray(RGB)
        if mode in ("LA", "PA", "La"):
            picture = picture.convert("L").convert("LA").convert(mode)
        elif mode == "RGBa":
            picture = picture.convert("RGBA").convert(mode)
        elif mode == "I;16B":
            picture = picture.convert("I").convert(mode)
        else:
            picture = picture.convert(mode)
        array = as_picture(picture)
        assert array.shape == (5, 7, 3) and array.dtype == np.uint8
        if mode in ("1", "P", "LA"):
            picture.save(tmp_path / "a.png")
            np.testing.assert_array_equal(array, read_image(tmp_path / "a.png"))


def test_only_files_are_turned():
    """A PIL picture is what it shows of itself, as an array of it is."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), exif=exif)
    assert as_picture(data).shape == (7, 5, 3)
    assert as_picture(Image.open(io.BytesIO(data))).shape == (5, 7, 3)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (None, "type NoneType is neither a picture nor a list"),
        (3, "type int is neither a picture"),
        ({"image": RGB}, "type dict is neither a picture"),
        ((x for x in [RGB]), "type generator is neither a picture"),
        ([None], "type NoneType is no picture"),
        ([[RGB]], "type list is no picture"),
        (np.int64(3), "type int64 is neither a picture"),
        (b"", "bytes of a picture are empty"),
        (b"hello", "in 5 bytes is damaged or in an unknown format"),
        (encoded(Image.fromarray(noise(64, 64, 3)), "jpeg")[:900], "in 900 bytes is"),
        (RGB.astype(np.float32), r"not float32 \[5, 7, 3\]; scale it to 0..255"),
        (RGB > 3, r"not bool \[5, 7, 3\]"),
        (RGB.astype(np.int64), r"not int64 \[5, 7, 3\]; convert it"),
        (jnp.zeros((5, 7, 3)), r"not float32 \[5, 7, 3\]; scale it"),
        (np.moveaxis(RGB, -1, 0), r"\[3, 5, 7\]; move the channels to the end"),
        (noise(5, 7, 2), r"\[5, 7, 2\]; give 1 \(grey\), 3 \(RGB\) or 4"),
        (noise(2, 5, 7, 3), r"\[2, 5, 7, 3\]; give a list of pictures"),
        (noise(5), r"not uint8 \[5\]"),
        (np.array(5, np.uint8), r"not uint8 \[\]"),
        (np.zeros((0, 7, 3), np.uint8), "0x7 pixels has nothing"),
        (np.zeros((5, 1), np.uint8), "5x1 pixels has nothing"),
        (np.array([RGB, None], object), "not object"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "mode 'F' holds values"),
        (Image.fromarray(np.zeros((4, 4), np.int32)), "mode 'I' holds values"),
        (Image.new("RGB", (1, 4)), "4x1 pixels has nothing"),
        ("", "cannot be read|no file"),
        ("a\0b.png", "cannot be read"),
        ("nowhere.jpg", "no file nowhere.jpg"),
        ("tests", "tests cannot be read"),
    ],
)
def test_what_is_none(given, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        as_pictures(given)
    assert isinstance(caught.value, UserError | DataError)


def test_a_damaged_file_that_pil_has_opened():
    data = encoded(Image.fromarray(noise(64, 64, 3)))
    with pytest.raises(UserError, match="PIL picture cannot be read"):
        as_picture(Image.open(io.BytesIO(data[:2000])))


def test_an_array_inside_of_jit():
    with pytest.raises(UserError, match="outside of jax.jit"):
        jax.jit(lambda x: as_picture(x))(RGB)
