"""Layouts of folders as they are found: nested, named otherwise, with strangers."""

import os

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.folder import Folder
from input_pipeline.datasets.folder_files import FolderLayout
from input_pipeline.info import DataError

SIZE = (6, 8)


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (9, 90, 60)).save(path)


def _mask(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(SIZE, value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    return tmp_path


def _faults(root, split="train", **layout):
    faults = []
    folder = Folder(root, split, faults.append, FolderLayout(**layout))
    names = [folder[i]["name"] for i in range(len(folder))]
    for fault in faults:
        assert str(fault).endswith(".") and "\n" not in str(fault)
    return names, [str(fault) for fault in faults]


def test_folders_within_a_split_are_read(root):
    for stem in ("a", "more/b", "more/still/c"):
        _image(root / f"images/train/{stem}.jpg")
        _mask(root / f"masks/train/{stem}.png", stem.count("/"))
    (root / "classes.txt").write_text("x\ny\nz\n")
    names, faults = _faults(root)
    assert names == ["a", "more/b", "more/still/c"] and not faults
    folder = Folder(root)
    assert [int(folder[i]["label_map"][0, 0]) for i in range(3)] == [0, 1, 2]
    # A mask that lies elsewhere is missed, not overlooked.
    (root / "masks/train/more/b.png").rename(root / "masks/train/b.png")
    names, faults = _faults(root)
    assert names == ["a", "more/still/c"]
    assert len(faults) == 1 and "more/b.png" in faults[0]


def test_links_to_folders(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    _image(elsewhere / "images/a.png")
    _mask(elsewhere / "masks/a.png")
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
        for name in ("one", "two"):
            (root / kind / "train" / name).symlink_to(elsewhere / kind)
        (root / kind / "train" / "loop").symlink_to(root / kind / "train")
        (root / kind / "train" / "itself").symlink_to("itself")
        (root / kind / "itself").symlink_to("itself")
    assert _faults(root) == (["one/a", "two/a"], [])


@pytest.mark.parametrize(
    "suffix", ["JPG", "jfif", "jpe", "ppm", "pnm", "webp", "BMP", "tiff", "gif", "jp2"]
)
def test_endings_that_are_read(root, suffix):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pnm": "PPM"}.get(suffix)
    (root / "images/train").mkdir(parents=True)
    picture = Image.new("RGB", SIZE[::-1], (9, 90, 60))
    picture.save(root / f"images/train/a.{suffix}", kind)
    _mask(root / "masks/train/a.png")
    assert _faults(root) == (["a"], [])


def test_endings_that_are_not_read_are_said(root):
    _image(root / "images/train/a.png")
    _mask(root / "masks/train/a.png")
    for name in ("b.heic", "c.strange", "d", "a.json", "Thumbs.db", "a.psd"):
        (root / "images/train" / name).write_bytes(b"?")
    for stem in ("c", "d"):
        _mask(root / f"masks/train/{stem}.png")
    names, faults = _faults(root)
    assert names == ["a"]
    assert [any(f"/{n} is not read" in f for f in faults) for n in ("b.heic", "d")]
    assert len(faults) == 3 and any("c.strange" in fault for fault in faults)
    with pytest.raises(DataError, match="is not read, for its ending"):
        Folder(root)
    (root / "images/train/a.png").unlink()
    with pytest.raises(DataError, match="holds no images .but files ending in .*heic"):
        Folder(root)


def test_two_images_of_one_stem_are_both_left_out(root):
    for name in ("a.png", "a.bmp", "b.png", "c.png"):
        _image(root / "images/train" / name)
    for stem in "abc":
        _mask(root / f"masks/train/{stem}.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "masks/train/c.PNG", "PNG")
    names, faults = _faults(root)
    assert names == ["b"] and len(faults) == 2
    assert "a.bmp and" in faults[0] and "share the stem 'a'" in faults[0]
    assert "masks/train/c.PNG" in faults[1]
    # As a list names it, nothing more is said.
    for kind in ("images", "masks"):
        for path in (root / kind / "train").iterdir():
            path.rename(root / kind / path.name)
        (root / kind / "train").rmdir()
    (root / "train.txt").write_text("a\nb\n")
    names, faults = _faults(root)
    assert names == ["b"] and len(faults) == 2


def test_a_mask_of_nearly_the_right_name_is_named(root):
    hints = {
        "a_mask.png": "there is a_mask.png, so set data.mask_ending=_mask.png",
        "a.tif": "there is a.tif, so set data.mask_ending=.tif",
        "a.png.png": "there is a.png.png, so set data.mask_ending=.png.png",
        "A.png": "there is A.png, which differs in capital letters",
        "a.jpg": "there is a.jpg, but masks must be of a lossless format",
        "ab.png": "",
        "a1.png": "",
    }
    _image(root / "images/train/a.png")
    (root / "masks/train").mkdir(parents=True)
    for name, hint in hints.items():
        path = root / "masks/train" / name
        path.write_bytes(b"")
        _, (fault,) = _faults(root)
        assert (f"; {hint}" if hint else "a.png; add the mask") in fault
        path.unlink()


def test_the_folders_of_cityscapes(root):
    for city, i in (("aachen", 0), ("bochum", 1)):
        stem = f"{city}/{city}_00000{i}"
        _image(root / f"leftImg8bit/train/{stem}_leftImg8bit.png")
        for kind in ("labelIds", "instanceIds", "color"):
            _mask(root / f"gtFine/train/{stem}_gtFine_{kind}.png", i)
        (root / f"gtFine/train/{stem}_gtFine_polygons.json").write_text("{}")
    layout = {
        "image_folder": "leftImg8bit",
        "mask_folder": "gtFine",
        "image_ending": "_leftImg8bit.png",
        "mask_ending": "_gtFine_labelIds.png",
    }
    assert _faults(root, **layout) == (
        ["aachen/aachen_000000", "bochum/bochum_000001"],
        [],
    )
    with pytest.raises(DataError, match="only train"):
        Folder(root, "val", layout=FolderLayout(**layout))


def test_the_split_may_be_the_outer_folder(root):
    for split in ("train", "val"):
        _image(root / split / "img" / "a.png")
        mask = root / split / "ann" / "a_mask.tif"
        _mask(mask, 1)
    layout = {
        "image_folder": "{split}/img",
        "mask_folder": "{split}/ann",
        "mask_ending": "_mask.tif",
    }
    for split in ("train", "val"):
        assert _faults(root, split, **layout) == (["a"], [])
    folder = Folder(root, layout=FolderLayout(**layout))
    assert folder[0]["label_map"].min() == 1


def test_images_and_masks_in_one_folder(root):
    for stem in ("a", "b"):
        _image(root / f"all/train/{stem}.jpg")
        _mask(root / f"all/train/{stem}_mask.png")
    layout = {"image_folder": "all", "mask_folder": "all", "image_ending": ".jpg"}
    assert _faults(root, **layout, mask_ending="_mask.png") == (["a", "b"], [])


@pytest.mark.parametrize("split", ["all", "all/train"])
def test_images_and_masks_in_one_folder_of_which_nobody_says_which(root, split):
    for stem in ("a", "b"):
        _image(root / split / f"{stem}.jpg")
        _mask(root / split / f"{stem}.png")
    (root / "train.txt").write_text("a\nb\n")
    folders, faults = {"image_folder": "all", "mask_folder": "all"}, []
    layout = FolderLayout(**folders)
    with pytest.raises(DataError, match="No image of .*/all.* has a stem of its own"):
        Folder(root, "train", faults.append, layout)
    advice = "cannot tell them apart; set data.image_ending=.jpg if the other is its"
    assert len(faults) == 2 and all(advice in str(fault) for fault in faults)
    assert _faults(root, image_ending=".jpg", **folders) == (["a", "b"], [])
    _image(root / split / "c.jpg")
    _image(root / split / "c.bmp")
    _mask(root / split / "c.png")
    with pytest.raises(DataError):
        Folder(root, "train", faults.append, layout)
    assert str(faults[-1]).endswith("; rename one.")


def test_names_that_are_not_utf_8(root):
    """They have a split and a name that can be printed."""
    for i in range(12):
        stem = os.fsdecode(b"stra\xdfe_%d" % i)
        _image(root / f"images/{stem}.png")
        _mask(root / f"masks/{stem}.png")
    names = {_faults(root, split)[0][0] for split in ("train", "val")}
    for name in names:
        assert name.startswith("stra\\udcdfe_")
        name.encode()
    assert len(Folder(root)) + len(Folder(root, "val")) == 12
    next((root / "masks").iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="is empty") as error:
        for split in ("train", "val"):
            folder = Folder(root, split)
            for i in range(len(folder)):
                folder[i]
    str(error.value).encode()


def test_names_in_both_spellings_of_accents(root):
    """As one letter (Linux, Windows) and as a letter and its accent (macOS)."""
    one, two = "caf\u00e9", "cafe\u0301"
    for name, mask in (("1", "1"), ("2", "2"), ("3", "3_mask")):
        _image(root / f"images/{one}{name}.jpg")
        _mask(root / f"masks/{two}{mask}.png")
    (root / "train.txt").write_text(f"{two}1\n{one}2\n{two}3\n")
    names, (fault,) = _faults(root)
    assert names == [f"{one}1", f"{one}2"]
    assert "so set data.mask_ending=_mask.png if that is it" in fault


def test_lists_of_all_sorts_of_line_ends(root):
    for stem in ("a", "b c", "d\u2028e"):
        _image(root / f"images/{stem}.png")
        _mask(root / f"masks/{stem}.png")
    for text in (
        "a\nb c\nd\u2028e",
        "\ufeffa\r\nb c\r\nd\u2028e\r\n\r\n\r\n",
        "a\rb c\rd\u2028e\r",
        "\n  a  \n\nb c\t\n\nd\u2028e\n\n",
    ):
        (root / "train.txt").write_bytes(text.encode())
        assert _faults(root) == (["a", "b c", "d\u2028e"], [])
