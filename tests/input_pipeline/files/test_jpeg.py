"""JPEG files that are odd and ones that are damaged."""

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from input_pipeline.files import images
from input_pipeline.files.jpeg import decode_jpeg
from input_pipeline.info import DataError

FORMS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "optimised": {"optimize": True},
}


def _jpeg(mode="RGB", size=(64, 80), seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    picture = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 3}],
)
def test_jpeg_is_decoded_as_cv2_does(options):
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    picture = Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 2))
    for mode in ("RGB", "L"):
        file = io.BytesIO()
        picture.convert(mode).save(file, "JPEG", **options)
        data = np.frombuffer(file.getvalue(), np.uint8)
        np.testing.assert_array_equal(
            decode_jpeg(file.getvalue()),
            cv2.imdecode(data, cv2.IMREAD_COLOR_RGB),
        )


def _changed(data, at, value):
    return data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_headers_that_only_look_odd(mode):
    """Pillow and cv2 decode all of these to the same pixels."""
    data = _jpeg(mode)
    right = images.image_from_bytes(data, "a.jpg")
    scan = data.index(b"\xff\xda")
    last = scan + 2 + struct.unpack_from(">H", data, scan + 2)[0]  # Its end: AhAl.
    table = data.index(b"\xff\xdb")
    odd = {
        "spectral end 0": _changed(data, last - 2, 0),
        "spectral end 62": _changed(data, last - 2, 62),
        "spectral start 1": _changed(data, last - 3, 1),
        "approximation": _changed(data, last - 1, 0x10),
        "garbage between segments": data[:table] + b"garbage" + data[table:],
        "fill bytes": data[:table] + b"\xff\xff\xff" + data[table:],
        "a broken profile of colours": data[:table]
        + b"\xff\xe2\x00\x12ICC_PROFILE\0\x07\x02\1\2"
        + data[table:],
        "bytes after the end": data + b"anything",
    }
    if mode == "CMYK":
        adobe = data.index(b"Adobe")
        odd["transform of colours"] = _changed(data, adobe + 11, 2)
        del odd["transform of colours"]  # It means other colours here, and is known.
    else:
        jfif = data.index(b"JFIF")
        odd["JFIF 2.0"] = _changed(data, jfif + 5, 2)
        odd["JFIF 9.9"] = _changed(data, jfif + 5, 9)
    if mode == "RGB":
        adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"
        odd["transform of colours"] = data[:table] + adobe + b"\7" + data[table:]
        odd["two at once"] = _changed(_changed(data, jfif + 5, 2), last - 2, 0)
    for what, file in odd.items():
        found = images.image_from_bytes(file, "a.jpg")
        np.testing.assert_array_equal(found, right, what)
        pillow = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        assert np.abs(pillow.astype(int) - right).max() <= 3, what
        # A warning about the header does not excuse damage.
        for cut in (file[: last + 40], file[:-200]):
            with pytest.raises(DataError, match="damaged"):
                images.image_from_bytes(cut, "a.jpg")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_padding_before_the_end(form, seed):
    data = _jpeg(seed=seed, **FORMS[form])
    right = simplejpeg.decode_jpeg(data, "RGB")
    noise = np.random.default_rng(seed).integers(0, 255, 300, np.uint8).tobytes()
    for padding in (b"\0", bytes(500), b"abc", b"\xaa", noise, b"\xff\0\xff\0"):
        padded = data[:-2] + padding + data[-2:]
        np.testing.assert_array_equal(decode_jpeg(padded), right)


def _is_refused(data, decode) -> bool:
    try:
        decode(data)
    except (ValueError, OSError):
        return True
    return False


def _strictly(data):
    return simplejpeg.decode_jpeg(data, "RGB")


def _without_mercy_for_padding(data):
    """What was the rule before: that, and whatever has bytes to spare."""
    try:
        return _strictly(data)
    except ValueError as error:
        if "extraneous bytes" in str(error):
            return simplejpeg.decode_jpeg(data, "RGB", strict=False)
        raise


def test_damage_to_the_scan_is_refused_where_it_shows():
    """Never less than what was refused before, and more."""
    padded = excused = 0
    for form, mode in itertools.product(FORMS, ("RGB", "L")):
        data = _jpeg(mode, (48, 64), **FORMS[form])
        scan = data.index(b"\xff\xda") + 14
        right = decode_jpeg(data)
        for place in range(scan, len(data) - 2, 5):
            for bit in (1, 128):
                changed = _changed(data, place, data[place] ^ bit)
                new = _is_refused(changed, decode_jpeg)
                old = _is_refused(changed, _without_mercy_for_padding)
                if old and not new:
                    np.testing.assert_array_equal(decode_jpeg(changed), right)
                if not old and _is_refused(changed, _strictly):
                    padded, excused = padded + 1, excused + (not new)
        for length in range(scan, len(data) - 2, 11):
            assert _is_refused(data[:length], decode_jpeg), (form, mode, length)
    assert padded > 200
    assert excused < padded / 2


def test_damage_to_four_colours_is_refused():
    """Pillow would decode them without a word."""
    data = _jpeg("CMYK")
    scan = data.index(b"\xff\xda") + 20
    blind = refused = 0
    for place in range(scan, len(data) - 2, 7):
        changed = _changed(data, place, data[place] ^ 16)
        blind += _is_refused(changed, lambda d: Image.open(io.BytesIO(d)).load())
        refused += _is_refused(changed, lambda d: images.image_from_bytes(d, "a"))
    assert refused > 3 * blind + 5


def test_no_file_ends_in_another_error():
    """Whatever the bytes are: a sentence or a picture."""
    data = _jpeg(size=(16, 16))
    for place in range(2, len(data)):
        for value in (0, 1, 0x7F, 0xFF, 0xD9, 0xDA):
            changed = _changed(data, place, value)
            try:
                images.image_from_bytes(changed, "a.jpg")
            except DataError as error:
                assert "\n" not in str(error)
