"""Twenty planted faults in a folder of 300 pictures are found; a clean one has none."""

import json
import types
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import segmenter
from mlseg_jax.cli.commands import doctor, statistics
from mlseg_jax.doctor.doctor import examine, write_sheet
from mlseg_jax.errors import UserError

NUM_CLASSES, SIZE = 12, (24, 32)
COUNTS = {"train": 240, "val": 60}


def write_clean(root):
    """Each picture has its own noise; every class is in many pictures of both."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            label = rng.integers(0, NUM_CLASSES, (3, 4)).repeat(8, 0).repeat(8, 1)
            cv2.imwrite(str(root / f"images/{split}/{split}_{i:03d}.png"), image)
            write_mask(root / f"masks/{split}/{split}_{i:03d}.png", label)
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    return root


def write_mask(path, values, dtype=np.uint8):
    cv2.imwrite(str(path), np.asarray(values, dtype))


def configuration(root, **overrides):
    config = segmenter.get_config("dataset=folder,backbone=vit_demo")
    config.data.path = str(root)
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_clean(tmp_path_factory.mktemp("clean"))


def test_nothing_is_found_in_a_clean_data_set(clean, tmp_path):
    report = examine(configuration(clean))
    assert report.findings == ()
    assert not report.training_would_go_wrong
    assert report.as_text().endswith("Nothing is wrong.")
    facts = report.as_json()["splits"]
    assert [s["num_read"] for s in facts] == [240, 60]
    write_sheet(report, tmp_path)
    height, width = cv2.imread(str(tmp_path / "samples.png")).shape[:2]
    assert width == 4 * 480
    assert height > 5 * 100
    assert json.loads((tmp_path / "doctor.json").read_text())["findings"] == []


def png_of_size(width, height):
    """A PNG whose header promises that many pixels."""
    data = bytearray(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def plant(root):
    """Plants twenty faults; returns (kind, what a place must say) of each."""
    image = {s: lambda i, s=s: root / f"images/{s}/{s}_{i:03d}.png" for s in COUNTS}
    mask = {s: lambda i, s=s: root / f"masks/{s}/{s}_{i:03d}.png" for s in COUNTS}
    label = cv2.imread(str(mask["train"](100)), cv2.IMREAD_UNCHANGED)

    def changed(value, dtype=np.uint8):
        values = label.astype(np.int32)
        values[3, 5] = value
        return values.astype(dtype)

    write_mask(mask["train"](0), changed(200))
    write_mask(mask["val"](0), changed(NUM_CLASSES))
    write_mask(mask["train"](1), changed(300, np.uint16), np.uint16)
    write_mask(mask["train"](2), label[:, :-1])
    write_mask(mask["train"](3), label.T)
    data = image["train"](4).read_bytes()
    image["train"](4).write_bytes(data[: len(data) // 2])
    image["train"](5).write_bytes(b"")
    image["train"](6).write_text("<html>404 not found</html>")
    data = mask["train"](7).read_bytes()
    mask["train"](7).write_bytes(data[:-30])
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(mask["train"](8))
    Image.fromarray(label).save(mask["train"](9), format="JPEG")
    mask["train"](10).unlink()
    mask["val"](1).unlink()
    image["val"](2).write_bytes(image["train"](50).read_bytes())
    # The same picture in another format.
    pixels = cv2.imread(str(image["train"](51)))
    cv2.imwrite(str(image["val"](3).with_suffix(".bmp")), pixels)
    image["val"](3).unlink()
    write_mask(mask["train"](12), np.full(SIZE, 255))
    image["train"](13).unlink()
    image["train"](14).write_bytes(image["train"](52).read_bytes())
    cv2.imwrite(str(image["train"](15)), np.zeros((1, 1, 3), np.uint8))
    image["train"](16).write_bytes(png_of_size(100_000, 100_000))
    return [
        ("unmapped", "train_000.png holds the value 200 "),
        ("unmapped", f"val_000.png holds the value {NUM_CLASSES} "),
        ("unmapped", "train_001.png holds the value 300 "),
        ("size", "train_002.png is 31x24"),
        ("size", "train_003.png is 24x32"),
        ("unreadable", "train_004.png is damaged"),
        ("unreadable", "train_005.png is empty"),
        ("unreadable", "train_006.png is damaged or in an unknown format"),
        ("unreadable", "masks/train/train_007.png is damaged"),
        ("unreadable", "train_008.png is a colour picture"),
        ("unreadable", "train_009.png is not a PNG"),
        ("no_mask", "train_010.png has no mask"),
        ("no_mask", "val_001.png has no mask"),
        ("leak", "val val_002 = train train_050"),
        ("leak", "val val_003 = train train_051"),
        ("all_ignored", "train_012"),
        ("no_image", "masks/train/train_013.png"),
        ("contradiction", "train_014 = train_052"),
        ("unreadable", "train_015.png is 1x1 pixels"),
        ("unreadable", "train_016.png has so many pixels"),
    ]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    root = write_clean(tmp_path_factory.mktemp("faulty"))
    return root, plant(root)


def test_twenty_planted_faults_are_found(faulty):
    root, planted = faulty
    report = examine(configuration(root))
    assert len(planted) == 20
    for kind, what in planted:
        places = [p for f in report.findings if f.kind == kind for p in f.places]
        assert sum(what in place for place in places) == 1, (kind, what, places)
    # And nothing that was not planted.
    assert sum(len(finding.places) for finding in report.findings) == 20
    assert report.training_would_go_wrong
    text = report.as_text()
    assert (
        "ERROR [unmapped] train: 2 masks hold values without a class (200, 300)."
        in (text)
    )
    json.dumps(report.as_json())


def test_what_is_skipped_is_only_a_warning(faulty):
    findings = examine(
        configuration(faulty[0], **{"data.on_bad_example": "skip"})
    ).findings
    level = {finding.kind: finding.is_error for finding in findings}
    assert not level["unreadable"]
    assert not level["unmapped"]
    assert not level["no_mask"]
    assert level["leak"]


def flags_of(config, **values):
    defaults = {"sample": 0, "json": True, "output": None}
    return types.SimpleNamespace(config=config, **(defaults | values))


def test_the_commands_print_json_and_an_exit_code(faulty, clean, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        doctor.run(flags_of(configuration(faulty[0])))
    assert json.loads(capsys.readouterr().out)["training_would_go_wrong"]
    doctor.run(flags_of(configuration(clean), sample=3))
    assert json.loads(capsys.readouterr().out)["findings"] == []
    statistics.run(flags_of(configuration(clean), output=str(tmp_path)))
    train_part, _ = json.loads(capsys.readouterr().out)
    assert train_part["k_of_0.99_images"] <= NUM_CLASSES
    assert len(train_part["images_by_k"]) == train_part["max_classes_per_image"] + 1
    assert cv2.imread(str(tmp_path / "classes_per_image.png")) is not None
    with pytest.raises(UserError, match="--sample counts examples"):
        doctor.run(flags_of(configuration(clean), sample=-1))


def test_a_sample_reads_only_so_many(clean):
    report = examine(configuration(clean), sample=5)
    assert [len(split.readings) for split in report.splits] == [5, 5]
    assert report.findings == ()


def test_classes_and_selections_that_cannot_work(tmp_path):
    root = write_clean(tmp_path)
    for path in sorted((root / "masks/train").iterdir()):
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        write_mask(path, np.where(values == 3, 255, values))
    with (root / "classes.txt").open("a") as file:
        file.write("nowhere\n")
    report = examine(configuration(root, **{"selection.k": 2}))
    found = {finding.kind: finding for finding in report.findings}
    assert found["only_in_evaluation"].places == ("class 3",)
    assert found["absent"].places == ("nowhere",)
    assert "selection.k is 2" in found["selection"].message
    assert not report.training_would_go_wrong


def test_a_data_set_that_cannot_be_opened_is_a_finding(tmp_path, clean):
    report = examine(configuration(tmp_path / "no"))
    assert [finding.kind for finding in report.findings] == ["open", "open"]
    assert report.training_would_go_wrong
    assert "cannot be opened" in report.as_text()
    write_sheet(report, tmp_path / "out")
    report = examine(configuration(clean, **{"data.num_classes": 7}))
    assert "data.num_classes is 7" in report.findings[0].places[0]
