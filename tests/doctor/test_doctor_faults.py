"""More ways in which a folder of pictures can be wrong, beyond those of test_doctor."""

import os

import numpy as np
import pytest
from PIL import Image

from configs import segmenter
from mlseg_jax.doctor.doctor import examine

SIZE = (24, 32)


def write_folder(root, count=16):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            label = rng.integers(0, 6, (3, 4)).repeat(8, 0).repeat(8, 1)
            image_path = root / f"images/{split}/{split}_{i:02d}.jpg"
            Image.fromarray(image).save(image_path, quality=95)
            mask_path = root / f"masks/{split}/{split}_{i:02d}.png"
            Image.fromarray(label.astype(np.uint8)).save(mask_path)
    (root / "classes.txt").write_text("".join(f"class {i}\n" for i in range(6)))
    return root


def configuration(root, **overrides):
    config = segmenter.get_config("dataset=folder,backbone=vit_demo")
    config.data.path = str(root)
    config.update_from_flattened_dict(overrides)
    return config


def plant(root):
    """Plants faults; returns (kind, what a place must say) of each."""
    image = [root / f"images/train/train_{i:02d}.jpg" for i in range(16)]
    mask = [root / f"masks/train/train_{i:02d}.png" for i in range(16)]
    label = np.asarray(Image.open(mask[0]))
    grey = Image.fromarray(label)
    grey.putalpha(255)
    grey.save(mask[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image[1]).save(image[1], exif=exif)
    mask[2].rename(mask[2].with_suffix(".jpg"))
    Image.fromarray(np.full((*SIZE, 3), 7, np.uint8)).save(image[3])
    Image.open(image[4]).save(image[4].with_suffix(".webp"))
    image[5].unlink()
    image[5].symlink_to(root / "nowhere.jpg")
    Image.fromarray(label.astype(np.float32)).save(mask[6], "TIFF")
    data = bytearray(mask[7].read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    mask[7].write_bytes(data)
    data = image[8].read_bytes()
    image[8].write_bytes(data[: len(data) // 2] + data[-2:])
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(mask[9], "GIF")
    # Colours that stand for classes, numbered anew in each file.
    colours = {0: (255, 0, 0), 1: (0, 255, 0)}
    for path, order in ((mask[10], (0, 1)), (mask[11], (1, 0))):
        picture = Image.fromarray((label % 2).astype(np.uint8)).convert("P")
        picture.putpalette(sum((colours[i] for i in order), ()))
        picture.save(path)
    image[12].write_bytes(b"not a picture")
    image[12].rename(image[12].with_name("ünïcode name.jpg"))
    mask[12].rename(mask[12].with_name("ünïcode name.png"))
    return [
        ("unreadable", "train_00.png is a colour picture (mode LA)"),
        ("size", "train_01.jpg is 24x32 once turned as its EXIF says"),
        ("no_mask", "train_02.jpg has no mask"),
        ("blank", "train_03 (7, 7, 7)"),
        ("listing", "share the stem 'train_04'"),
        ("unreadable", "train_05.jpg"),
        ("unreadable", "train_06.png holds 32-bit or floating-point"),
        ("unreadable", "train_07.png is damaged"),
        ("unreadable", "train_08.jpg is damaged"),
        ("unreadable", "train_09.png is not a PNG"),
        ("palette", "value 0 is the colour"),
        ("palette", "value 1 is the colour"),
        ("unreadable", "ünïcode name.jpg is damaged or in an unknown format"),
    ]


def test_planted_faults_are_found(tmp_path):
    planted = plant(write_folder(tmp_path))
    report = examine(configuration(tmp_path))
    for kind, what in planted:
        places = [p for f in report.findings if f.kind == kind for p in f.places]
        assert sum(what in place for place in places) == 1, (kind, what, places)
    assert sum(len(finding.places) for finding in report.findings) == len(planted)
    assert report.training_would_go_wrong
    assert all("\n" not in line for f in report.findings for line in f.places)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a\nb\nb\n", "both say 'b'"),
        ("a\n\nb\n", "is empty, but each line is a class"),
        ("", "is empty; write one class name a line"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        ("a\nb\n", "holds the value"),
    ],
)
def test_wrong_lists_of_classes(tmp_path, text, what):
    root = write_folder(tmp_path, count=4)
    data = text.encode() if isinstance(text, str) else text
    (root / "classes.txt").write_bytes(data)
    report = examine(configuration(root))
    assert report.training_would_go_wrong
    assert what in report.as_text()


def test_an_empty_split_and_lists_that_overlap(tmp_path):
    root = write_folder(tmp_path / "a", count=4)
    for path in (root / "images/val").iterdir():
        path.unlink()
    assert "images/val holds no images" in examine(configuration(root)).as_text()
    root = write_folder(tmp_path / "b", count=6)
    for kind in ("images", "masks"):
        for path in sorted((root / kind / "train").iterdir()):
            os.rename(path, root / kind / path.name)
        for path in (*(root / kind / "val").iterdir(), *(root / kind).glob("*/")):
            path.unlink() if path.is_file() else path.rmdir()
    (root / "train.txt").write_text("train_00\ntrain_01\ntrain_02\ntrain_03\n")
    (root / "val.txt").write_text("train_03\ntrain_04\ntrain_04\ngone\n")
    found = {f.kind: f.places for f in examine(configuration(root)).findings}
    assert found["leak"] == ("val train_03 = train train_03",)
    assert [what in line for what, line in zip(
        ("'train_04' twice", "'gone'"), found["listing"], strict=True
    )] == [True, True]  # fmt: skip
