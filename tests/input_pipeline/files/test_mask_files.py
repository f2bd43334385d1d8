"""Masks of every mode, and files that are none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.files import images, mask_files
from input_pipeline.info import DataError


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


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [(1, 0b01100000, [0, 1, 1]), (2, 0b00011100, [0, 1, 3]), (4, 0x0F, [0, 15])],
)
def test_mask_of_few_bits_keeps_its_values(tmp_path, depth, row, expected):
    (tmp_path / "a.png").write_bytes(_png(len(expected), [bytes([row])] * 2, depth))
    values = mask_files.read_mask(tmp_path / "a.png")
    np.testing.assert_array_equal(values, [expected] * 2)


@pytest.mark.parametrize(
    ("bits", "greys"), [(8, (0, 255)), (4, (0, 255)), (4, range(16)), (8, range(256))]
)
def test_bmp_masks_with_a_grey_palette(tmp_path, bits, greys):
    values = np.arange(96).reshape(6, 16) * 5 % 7 % len(greys)
    rows = values[::-1]  # The last one comes first.
    pixels = (rows if bits == 8 else 16 * rows[:, ::2] + rows[:, 1::2]).astype(np.uint8)
    palette, start = bytes(x for grey in greys for x in (grey, grey, grey, 0)), 54
    start += len(palette)
    header = b"BM" + struct.pack("<III", start + pixels.size, 0, start)
    header += struct.pack("<IiiHHIIiiII", 40, 16, 6, 1, bits, 0, 0, 0, 0, len(greys), 0)
    path = tmp_path / "a.bmp"
    path.write_bytes(header + palette + pixels.tobytes())
    np.testing.assert_array_equal(mask_files.read_mask(path), values)
    picture = images.read_image(path)
    np.testing.assert_array_equal(picture[..., 1], np.array(greys)[values])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a.bmp is damaged"):
        mask_files.read_mask(path)


def test_palette_mask_gives_indices(tmp_path):
    indices = np.array([[0, 1, 2], [255, 254, 7]], np.uint8)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(np.random.default_rng(0).permutation(768) % 256)
    picture.save(tmp_path / "a.png")
    values, depth = mask_files.decode_mask(tmp_path / "a.png")
    assert values.dtype == np.uint8 and depth == 8
    np.testing.assert_array_equal(values, indices)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_the_bytes_are_it_is_a_sentence_or_a_mask(tmp_path, rgb, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb[:8, :9]).save(path)
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        for value in (0, 255, data[place] ^ 16):
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            for read in (mask_files.mask_from_bytes, mask_files.colours_from_bytes):
                try:
                    read(changed, "a")
                except DataError as error:
                    assert "\n" not in str(error)


def test_a_palette_with_transparent_entries(tmp_path, rgb):
    picture = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE)
    picture.save(tmp_path / "a.png")
    expected = images.read_image(tmp_path / "a.png")
    picture.save(tmp_path / "b.png", transparency=bytes(range(200)))
    np.testing.assert_array_equal(images.read_image(tmp_path / "b.png"), expected)
    np.testing.assert_array_equal(
        mask_files.read_colours(tmp_path / "b.png"),
        expected.astype(int) @ [65536, 256, 1],
    )


def test_masks_that_are_no_masks(tmp_path, rgb):
    path = tmp_path / "a.png"
    for mode in ("RGB", "RGBA", "LA"):
        Image.fromarray(rgb).convert(mode).save(path)
        with pytest.raises(DataError, match=f"colour picture .mode {mode}") as error:
            mask_files.read_mask(path)
        assert str(path) in _one_sentence(error)
    Image.fromarray(rgb).convert("L").save(path, format="JPEG")
    with pytest.raises(DataError, match="not a PNG file inside") as error:
        mask_files.read_mask(path)
    _one_sentence(error)
    noise = np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="damaged") as error:
        mask_files.read_mask(path)
    _one_sentence(error)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_flipped_bit_is_found(tmp_path, mode, capfd):
    """Pillow does not look at the check sums of a PNG."""
    ids = (np.mgrid[:60, :80].sum(axis=0) // 7 % 30).astype(np.uint8)
    picture = Image.fromarray(ids)
    if mode == "P":
        picture = picture.convert("P")
        picture.putpalette(list(range(256)) * 3)
    picture.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"IDAT") + 4
    for place in range(start, len(data) - 16, 9):
        changed = bytearray(data)
        changed[place] ^= 4
        with pytest.raises(DataError, match="a.png is damaged"):
            mask_files.mask_from_bytes(bytes(changed), "a.png")


@pytest.mark.parametrize("suffix", ["tif", "bmp"])
def test_masks_of_other_lossless_formats(tmp_path, suffix):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(
        mask_files.read_mask(tmp_path / f"a.{suffix}"), values
    )
    if suffix == "tif":
        deep = values.astype(np.uint16) * 200
        Image.fromarray(deep).save(tmp_path / "b.tif")
        found, depth = mask_files.decode_mask(tmp_path / "b.tif")
        assert depth == 16
        np.testing.assert_array_equal(found, deep)


def test_masks_whose_values_would_change(tmp_path):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    path = tmp_path / "a.tif"
    grey.save(path, compression="jpeg")
    with pytest.raises(DataError, match="TIFF jpeg, and other formats change"):
        mask_files.read_mask(path)
    grey.save(path, save_all=True, append_images=[grey])
    with pytest.raises(DataError, match="has 2 pages"):
        mask_files.read_mask(path)
    few = np.arange(64).reshape(8, 8) % 3 == 0
    for mode, values in (("1", few), ("L", 255 * few)):
        Image.fromarray(few).convert(mode).save(path)
        np.testing.assert_array_equal(mask_files.read_mask(path), values)
        tag, data = b"\6\1\3\0\1\0\0\0", path.read_bytes()  # What black is.
        assert data.count(tag + b"\1") == 1
        path.write_bytes(data.replace(tag + b"\1", tag + b"\0"))
        with pytest.raises(DataError, match="white as 0"):
            mask_files.read_mask(path)
    for kind in ("webp", "ppm", "gif"):
        grey.save(tmp_path / f"a.{kind}")
        with pytest.raises(DataError, match="not a PNG file inside"):
            mask_files.read_mask(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_colours_of_masks(tmp_path, mode):
    rgb = np.zeros((3, 4, 3), np.uint8)
    rgb[0], rgb[1, 2] = (255, 128, 1), (7, 7, 7)
    picture = Image.fromarray(rgb if mode != "L" else rgb[..., 0])
    picture = picture.convert(mode, palette=Image.Palette.ADAPTIVE)
    picture.save(tmp_path / "a.png")
    expected = rgb.astype(int) @ [65536, 256, 1]
    if mode == "L":
        expected = rgb[..., 0].astype(int) * 65793
    np.testing.assert_array_equal(mask_files.read_colours(tmp_path / "a.png"), expected)
    Image.fromarray(np.ones((2, 2), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="16 bits a colour"):
        mask_files.read_colours(tmp_path / "b.png")
