"""Label maps in the raw values of the masks of the training."""

import dataclasses
import json
import types

import numpy as np
import pytest
from PIL import Image

from configs import segmenter
from input_pipeline.datasets.folder import Folder
from input_pipeline.files import mask_files
from input_pipeline.info import DatasetInfo
from mlseg_jax.cli.commands import predict
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.raw_values import raw_value_writer
from mlseg_jax.prediction.segmenter import Prediction
from mlseg_jax.runs.workdir import load_info

LABEL_MAP = np.int32([[0, 1, 2], [2, 2, 0]])


def info(raw_values):
    return DatasetInfo("mine", ("a", "b", "c"), (False,) * 3, raw_values)


@pytest.mark.parametrize(
    ("raw_values", "dtype"),
    [
        ((7, 0, 255), np.uint8),
        ((0, 1, 2), np.uint8),
        ((1, 256, 3), np.uint16),
        ((9, 8, 65535), np.uint16),
    ],
)
def test_values(tmp_path, raw_values, dtype):
    raw_value_writer(info(raw_values), "run")(tmp_path / "a.png", LABEL_MAP)
    found, depth = mask_files.decode_mask(tmp_path / "a.png")
    assert found.dtype == dtype and depth == 8 * found.itemsize
    np.testing.assert_array_equal(found, np.take(raw_values, LABEL_MAP))


def test_colours(tmp_path):
    colours = ("#ff0102", "#000000", "#0a0b0c")
    raw_value_writer(info(colours), "run")(tmp_path / "a.png", LABEL_MAP)
    expected = np.uint8([[255, 1, 2], [0, 0, 0], [10, 11, 12]])[LABEL_MAP]
    found = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "table",
    [
        {"9": "road", "7": "car", "8": "road", "3": None, "300": "sky"},
        {"#000000": None, "#0a0b0c": "road", "#ff0000": "car", "#00ff00": "sky"},
    ],
)
def test_what_is_written_is_read_back(tmp_path, table):
    (tmp_path / "classes.json").write_text(json.dumps(table))
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(tmp_path / "images/train/a.png")
    path = tmp_path / "masks/train/a.png"
    Image.new("L", (3, 2)).save(path)
    folder_info = Folder(tmp_path).info
    raw_value_writer(folder_info, "run")(path, LABEL_MAP)
    np.testing.assert_array_equal(Folder(tmp_path)[0]["label_map"], LABEL_MAP)


def test_a_run_keeps_them(tmp_path):
    config = segmenter.get_config("dataset=folder,backbone=vit_demo")
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    facts = dataclasses.asdict(info((7, 0, "#ff0000")))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(facts))
    assert load_info(str(tmp_path)).raw_values == (7, 0, "#ff0000")
    del facts["raw_values"]
    path.write_text(json.dumps(facts))
    assert load_info(str(tmp_path)).raw_values is None


def test_what_has_no_raw_values():
    with pytest.raises(UserError, match="does not say which raw values"):
        raw_value_writer(info(None), "run")
    with pytest.raises(UserError, match="has the raw value 70000, which no 16-bit"):
        raw_value_writer(info((1, 70_000, 2)), "run")


class _Segmenter:
    """Gives every picture the same label map."""

    info = info((7, 300, 255))

    def __call__(self, pictures):
        label_map = LABEL_MAP.astype(np.uint8)
        names = self.info.class_names
        return [Prediction(picture, label_map, (), names) for picture in pictures]


@pytest.mark.parametrize("raw_values", [False, True])
def test_the_command(tmp_path, monkeypatch, capsys, raw_values):
    monkeypatch.setattr(predict, "load_with_config", lambda *_: _Segmenter())
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    config = segmenter.get_config("dataset=folder,backbone=vit_demo")
    flags = types.SimpleNamespace(
        workdir="run",
        config=config,
        scores=None,
        output=str(tmp_path / "out"),
        images=[str(tmp_path / "a.png")],
        checkpoint="latest",
        raw_values=raw_values,
        video=None,
    )
    predict.run(flags)
    expected = np.take((7, 300, 255), LABEL_MAP) if raw_values else LABEL_MAP
    found = mask_files.read_mask(tmp_path / "out/a.png")
    np.testing.assert_array_equal(found, expected)
    config.task = "multilabel"
    flags.raw_values = True
    with pytest.raises(UserError, match="leave out --raw_values"):
        predict.run(flags)
