"""Real files of every mode, whole and damaged."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from input_pipeline.files import images, mask_files
from input_pipeline.info import DataError
from mlseg_jax.typing import IGNORE


@pytest.fixture
def rgb():
    """A smooth uint8 [48 64 3] picture without symmetry, which JPEG keeps well."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, x + y], axis=-1).astype(np.uint8)


def _png(width: int, rows: list[bytes], depth: int, colour_type: int = 0) -> bytes:
    """A PNG of a bit depth that neither cv2 nor Pillow would write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


def _one_sentence(error) -> str:
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif"])
def test_reads_format(tmp_path, rgb, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb).save(path)
    image = images.read_image(path)
    assert image.dtype == np.uint8 and image.shape == rgb.shape
    # GIF has 256 colours for the whole picture.
    tolerance = {"png": 0, "bmp": 0, "tif": 0, "gif": 40}.get(suffix, 12)
    assert np.abs(image.astype(int) - rgb).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_reads_mode(tmp_path, rgb, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture = Image.fromarray(rgb).convert(mode)
    picture.save(path)
    image = images.read_image(path)
    assert image.shape == rgb.shape
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


def test_alpha_is_dropped(tmp_path, rgb):
    alpha = np.zeros((*rgb.shape[:2], 1), np.uint8)
    Image.fromarray(np.concatenate([rgb, alpha], axis=-1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), rgb)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_grey_and_cmyk(tmp_path, rgb, mode):
    picture = Image.fromarray(rgb).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=95)
    expected = np.asarray(picture.convert("RGB")).astype(int)
    image = images.read_image(tmp_path / "a.jpg")
    assert np.abs(image - expected).max() <= 12


def test_16_bit_is_scaled(tmp_path):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    cv2.imwrite(str(tmp_path / "colour.png"), np.repeat(values[..., None], 3, -1))
    for name in ("a.png", "a.tif", "colour.png"):
        image = images.read_image(tmp_path / name)
        assert image.shape == (2, 3, 3)
        np.testing.assert_array_equal(image[..., 1], [[0, 0, 1], [128, 254, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(tmp_path, rgb, suffix, orientation):
    expected = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.swapaxes(0, 1),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(rgb),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    image = images.read_image(tmp_path / f"a.{suffix}")
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 12


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("white", [65535, 1535])
def test_exif_orientation_of_16_bit(tmp_path, suffix, white):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = (np.arange(6, dtype=np.uint16) * 256).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}", exif=exif)
    grey = values.astype(int) * 256 // (white + 1)
    for turned in (True, False):
        options = images.ReadOptions(exif=turned, white=white)
        image = images.read_image(tmp_path / f"a.{suffix}", options)
        expected = np.rot90(grey, -1) if turned else grey
        np.testing.assert_array_equal(image[..., 0], expected)


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_exif_orientation_of_16_bit_colours(tmp_path, orientation):
    values = np.arange(72, dtype=np.uint16).reshape(4, 6, 3)
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), 16 * values[..., ::-1])
    # A tag says how planes lie, as usual; the same says how it is turned.
    tag, data = b"\x1c\x01\x03\0\x01\0\0\0\x01\0", path.read_bytes()
    turned = struct.pack("<HHIH", 0x0112, 3, 1, orientation)
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, turned))
    expected = {3: values[::-1, ::-1], 6: np.rot90(values, -1)}
    expected[7] = values[::-1, ::-1].swapaxes(0, 1)
    image = images.read_image(path, images.ReadOptions(white=4095))
    np.testing.assert_array_equal(image, expected[orientation])
    options = images.ReadOptions(white=4095, exif=False)
    np.testing.assert_array_equal(images.read_image(path, options), values)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_image(tmp_path, rgb, suffix, share, monkeypatch):
    # Another library may have asked Pillow to pad what is missing.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="is damaged or in an unknown") as error:
        images.read_image(path)
    assert str(path) in _one_sentence(error)


def test_unreadable_images(tmp_path):
    path = tmp_path / "a.jpg"
    with pytest.raises(DataError, match="There is no file") as error:
        images.read_image(path)
    _one_sentence(error)
    with pytest.raises(DataError, match="cannot be read") as error:
        images.read_image(tmp_path)
    _one_sentence(error)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty") as error:
        images.read_image(path)
    _one_sentence(error)
    path.write_bytes(b"Version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="not a picture") as error:
        images.read_image(path)
    _one_sentence(error)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_tiny_image(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=f"is {size[0]}x{size[1]} pixels") as error:
        images.read_image(tmp_path / "a.png")
    _one_sentence(error)


def test_float_image(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floating-point") as error:
        images.read_image(tmp_path / "a.tif")
    _one_sentence(error)


@pytest.mark.parametrize("read", [images.read_image, mask_files.read_mask])
def test_decompression_bomb(tmp_path, read):
    path = tmp_path / "a.png"
    path.write_bytes(_png(60000, [], 8)[:16] + _png(60000, [b"\0"], 8)[16:])
    data = bytearray(path.read_bytes())
    data[20:24] = struct.pack(">I", 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(DataError, match="decompression bomb") as error:
        read(path)
    assert str(path) in _one_sentence(error)


@pytest.mark.parametrize("num_classes", [1, 254, 255, 256, 257, 10_000, 65_535])
def test_label_map_round_trip(tmp_path, num_classes):
    ids = np.array([[IGNORE, 0, 253, 254], [255, 256, 60_000, 65_534]], np.int32)
    ids = np.minimum(ids, num_classes - 1)
    path = tmp_path / "a.png"
    images.write_label_map(path, ids, num_classes)
    raw, depth = mask_files.decode_mask(path)
    assert depth == (8 if num_classes <= 255 else 16)
    assert raw[0, 0] == (255 if depth == 8 else 65535)
    np.testing.assert_array_equal(np.where(ids == IGNORE, raw, ids), raw)


def test_label_map_that_does_not_fit(tmp_path):
    path = tmp_path / "a.png"
    for ids in ([[3]], [[-2]]):
        with pytest.raises(ValueError, match="only 3 classes"):
            images.write_label_map(path, np.array(ids), 3)
    with pytest.raises(ValueError, match="1 to 65535 classes"):
        images.write_label_map(path, np.array([[0]]), 65_536)


def test_a_limit_on_pixels_is_held_by_the_header_alone():
    limit = 50_000_000
    data = bytearray(cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes())
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    for read in (
        lambda *args: images.image_from_bytes(*args, images.ReadOptions(limit)),
        lambda *args: mask_files.mask_from_bytes(*args, limit),
    ):
        with pytest.raises(DataError, match="limit data.max_pixels is 50,000,000"):
            read(bytes(data), "a.png")


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_a_white_value_of_16_bit_pictures(tmp_path, suffix):
    values = np.array([[0, 15, 16], [2048, 4095, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)
    options = images.ReadOptions(white=4095)
    image = images.read_image(tmp_path / f"a.{suffix}", options)
    np.testing.assert_array_equal(image[..., 0], [[0, 0, 1], [128, 255, 255]])
    if suffix != "pgm":
        colours = np.stack([values, values // 2, 0 * values], axis=-1)
        cv2.imwrite(str(tmp_path / f"c.{suffix}"), colours)
        image = images.read_image(tmp_path / f"c.{suffix}", options)
        np.testing.assert_array_equal(image[..., 2], [[0, 0, 1], [128, 255, 255]])
        np.testing.assert_array_equal(image[1, :, 1], [64, 127, 255])
        assert (image[..., 0] == 0).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_can_be_ignored(tmp_path, rgb, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    image = images.read_image(tmp_path / f"a.{suffix}", images.ReadOptions(exif=False))
    assert image.shape == rgb.shape
    assert np.abs(image.astype(int) - rgb).max() <= 12


def test_pictures_up_to_the_limit_are_read(monkeypatch):
    """Also over Pillow's own limit, which is of the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    for limit, fits in ((1200, True), (1199, False)):
        options = images.ReadOptions(max_pixels=limit)
        if fits:
            assert images.image_from_bytes(data, "a", options).shape == (30, 40, 3)
        else:
            with pytest.raises(DataError, match="40x30.*data.max_pixels is 1,199"):
                images.image_from_bytes(data, "a", options)
