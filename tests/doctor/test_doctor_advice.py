"""What doctor says of data that can be read but means something else."""

import json
import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import own_data, segmenter
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError
from mlseg_jax.doctor import checks
from mlseg_jax.doctor.checks import _tell_unmapped
from mlseg_jax.doctor.doctor import examine
from mlseg_jax.training.data_remarks import say_oddities

SIZE = (24, 32)


def write_folder(root, values, names, count=6, dtype=np.uint8):
    """Masks of these values in equal parts, beside pictures of noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            cv2.imwrite(str(root / f"images/{split}/{split}_{i}.png"), image)
            mask = np.resize(np.array(values, dtype), SIZE)
            cv2.imwrite(str(root / f"masks/{split}/{split}_{i}.png"), mask)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def configuration(root, **overrides):
    config = segmenter.get_config("dataset=folder,backbone=vit_demo")
    config.data.path = str(root)
    config.update_from_flattened_dict(overrides)
    return config


def found(config):
    report = examine(config)
    for finding in report.findings:
        assert "\n" not in finding.message and finding.message.endswith(".")
    return {finding.kind: finding for finding in report.findings}, report


def warnings_of(caplog, config):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        say_oddities(config, open_dataset(config.data, train=True))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("limit", [0, 4])
def test_masks_of_0_and_255(tmp_path, caplog, limit):
    root = write_folder(tmp_path, [0, 0, 0, 255], ("background", "thing"))
    config = configuration(root, **{"data.train_examples": limit})
    findings, report = found(config)
    finding = findings["ignored_value"]
    assert finding.is_error and report.training_would_go_wrong
    assert "the value 255 at 25.0% of the pixels" in finding.message
    assert '{"0": "background", "255": "thing"}' in finding.message
    (line,) = warnings_of(caplog, config)
    assert "255 probably means 'thing'" in line
    # Once it is said, all is well.
    (root / "classes.txt").unlink()
    table = {"0": "background", "255": "thing"}
    (root / "classes.json").write_text(json.dumps(table))
    findings, report = found(config)
    assert not report.training_would_go_wrong and "ignored_value" not in findings
    assert warnings_of(caplog, config) == []


def test_one_class_and_void_is_no_mistake(tmp_path):
    root = write_folder(tmp_path, [0, 0, 0, 255], ("only",))
    assert "ignored_value" not in found(configuration(root))[0]


def test_16_bit_masks_of_two_values(tmp_path):
    root = write_folder(tmp_path, [0, 65535], ("background", "thing"), dtype=np.uint16)
    message = found(configuration(root))[0]["ignored_value"].message
    assert "the value 65535 at 50.0%" in message


def test_255_that_is_a_class(tmp_path, caplog):
    names = [f"class {i}" for i in range(300)]
    root = write_folder(tmp_path, [0, 7, 255], names)
    findings, report = found(configuration(root))
    finding = findings["ignore_value"]
    assert not report.training_would_go_wrong
    assert "6 masks of 8 bits hold 255" in finding.message
    assert "which is the class 'class 255'" in finding.places[0]
    assert any("hold 255" in line for line in warnings_of(caplog, configuration(root)))
    other = write_folder(tmp_path / "b", [0, 7, 255], names, dtype=np.uint16)
    assert "ignore_value" not in found(configuration(other))[0]


def test_pictures_of_12_bits(tmp_path, caplog):
    root = write_folder(tmp_path, [0, 1], ("a", "b"))
    for i, path in enumerate(sorted((root / "images/train").iterdir())):
        values = np.random.default_rng(i).integers(0, 4096, SIZE, np.uint16)
        cv2.imwrite(str(path), values)
    config = configuration(root)
    finding = found(config)[0]["range"]
    assert "data.white_value" in finding.message and len(finding.places) == 6
    assert "16 of 256 grey levels" in finding.places[0]
    assert any("white_value" in line for line in warnings_of(caplog, config))
    config.data.white_value = 4095
    assert "range" not in found(config)[0]
    image = open_dataset(config.data, train=True)[0]["image"]
    assert len(np.unique(image)) > 200


def test_masks_of_the_stored_pixels(tmp_path):
    root = write_folder(tmp_path, [0, 1], ("a", "b"))
    for orientation, path in enumerate(sorted((root / "images/train").iterdir()), 3):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(path, exif=exif)
    config = configuration(root)
    findings, _ = found(config)
    assert len(findings["size"].places) == 4  # 5 to 8 swap the sides.
    assert all("data.exif=False" in place for place in findings["size"].places)
    assert len(findings["exif"].places) == 2  # 3 and 4 do not.
    assert "data.exif=False" in findings["exif"].message
    config.data.exif = False
    assert found(config)[1].findings == ()


@pytest.mark.parametrize("void", [7, 255])
def test_a_value_on_most_masks_is_told_once(tmp_path, void):
    root = write_folder(tmp_path, [0, 1, void], ("a", "b"), count=12)
    if void == 255:
        table = {"0": "a", "1": "b"}
        (root / "classes.json").write_text(json.dumps(table))
        (root / "classes.txt").unlink()
    findings, report = found(configuration(root))
    text = report.as_text()
    for split in ("train", "val"):
        line = f"{void} in 12 of 12 masks of {split}, on most masks, so it is nearly"
        assert text.count(line) == 1
    (place,) = (p for f in report.findings for p in f.places if "of train" in p)
    assert f'"{void}": null' in place and place.count(".png") == 3
    assert set(findings) == {"unmapped", "nothing_readable"}
    assert "in no image" not in text


def test_colours_without_a_class(tmp_path):
    root = write_folder(tmp_path, [0, 1], ("a", "b"))
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text('{"#000000": "a"}')
    findings, _ = found(configuration(root))
    assert "(#010101)" in findings["unmapped"].message
    assert '"#010101": null' in findings["unmapped"].places[0]


def test_labels_without_a_class():
    faults = [DataError("x", path=f"{i}.json", values=("zz",)) for i in range(4)]
    (place,) = _tell_unmapped(faults, 4, "train")
    assert "classes.txt" in place and "null" not in place


def test_splits_of_json_files_with_other_categories(tmp_path):
    for split, names in (("train", "abc"), ("val", "ab")):
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        image = {"id": 1, "file_name": "1.png", "height": 24, "width": 32}
        content = {"images": [image], "annotations": [], "categories": categories}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        (tmp_path / "images" / split).mkdir(parents=True)
        value = 9 * len(split)
        picture = Image.new("RGB", SIZE[::-1], (value, value, 0))
        picture.save(tmp_path / "images" / split / "1.png")
    config = configuration(tmp_path, **{"data.name": "coco_json"})
    message = found(config)[0]["classes_differ"].message
    assert "only train has 'c'" in message and "classes.json" in message
    (tmp_path / "classes.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    assert "classes_differ" not in found(config)[0]


def test_the_selection_that_fits_is_said(tmp_path, caplog, monkeypatch):
    names = [f"thing {i}" for i in range(40)]
    root = write_folder(tmp_path, range(7), names)
    config = configuration(root)
    advice = "pictures hold 7.0 of 40 classes on average and 7 at most; selection.name"
    _, report = found(config)
    assert advice in report.as_text() and advice in report.as_json()["advice"]
    assert "selection.k=14 and loss.multilabel_weight=2.8" in report.advice
    with caplog.at_level(logging.INFO):
        say_oddities(config, open_dataset(config.data, train=True))
    assert f"of 6 examples looked at: {advice}" in caplog.text
    config.selection.name = "oracle"
    assert not examine(config).advice
    # Where train chooses K, what is set stands for nothing.
    monkeypatch.setattr(checks, "least_k", lambda *_: 60)
    config = own_data.get_config().unlock()
    config.data.path = str(root)
    findings, report = found(config)
    chosen = "; train will choose selection.name=top_k, selection.k=14 and loss.mul"
    assert chosen in report.advice and "selection" not in findings
    config.selection.k = 5
    findings, report = found(config)
    assert report.advice.endswith("would fit (set: top_k, K = 5, auto).")
    assert "selection" in findings
