"""Parts of splits: neighbours, disjoint, and all of the split together."""

import pickle

import numpy as np
import pytest
from PIL import Image

from input_pipeline.datasets.open import open_dataset
from input_pipeline.datasets.split_parts import SplitPart, split_part
from input_pipeline.info import DataError
from input_pipeline.preparation.class_statistics import Presence
from tests.tiny import tiny_config


@pytest.mark.parametrize("length", [1, 3, 7, 367])
@pytest.mark.parametrize("border", ["33%", "80%", "2", "0"])
def test_parts_of_one_border_make_up_the_split(length, border):
    first, second = split_part(f"train[:{border}]"), split_part(f"train[{border}:]")
    assert first.name == second.name == "train"
    both = [*first.of(length), *second.of(length)]
    assert both == list(range(length))


def test_names():
    assert split_part("val") == SplitPart("val", 0, None)
    assert split_part("val").of(5) == range(5)
    assert split_part("train[10%:20%]").of(50) == range(5, 10)
    assert split_part("a/b[3:]").of(5) == range(3, 5)
    for odd in ("train[x:]", "train[1]", "[1:2]", "train[50%]"):
        assert split_part(odd).name == odd


@pytest.fixture
def folder(tmp_path):
    for name in ("images/train", "masks/train"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for i in range(10):
        picture = np.full((4, 4, 3), i, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"images/train/{i}.png")
        Image.fromarray(picture[..., 0] % 2).save(tmp_path / f"masks/train/{i}.png")
    return tmp_path


def test_a_folder_in_parts(folder):
    config = tiny_config(
        {
            **{"data.name": "folder", "data.path": str(folder), "data.num_classes": 2},
            **{"data.train_split": "train[:70%]", "data.eval_split": "train[80%:]"},
            **{"data.train_examples": 0, "data.eval_examples": 0},
        }
    ).data
    train, held = open_dataset(config, train=True), open_dataset(config, train=False)
    assert [train[i]["name"] for i in range(len(train))] == list("0123456")
    assert [held[i]["name"] for i in range(len(held))] == ["8", "9"]
    config.update(cache=True, eval_examples=1)
    train, held = open_dataset(config, train=True), open_dataset(config, train=False)
    assert len(held) == 1 and np.all(held[0]["image"] == 8)
    # Training examples are kept, but are not sent to worker processes.
    sent = pickle.dumps(train)
    assert train[3] is train[3] and held[0] is not held[0]
    assert train[3]["name"] == "3" and pickle.dumps(train) == sent
    config.eval_split = "train[:0%]"
    with pytest.raises(DataError, match="'train.:0%.' of 10 examples .* is empty"):
        open_dataset(config, train=False)


def test_scenes_in_parts():
    overrides = {"data.train_split": "train[:20]", "data.eval_split": "train[20:]"}
    config = tiny_config(overrides).data
    whole = open_dataset(tiny_config().data, train=True)
    train, held = open_dataset(config, train=True), open_dataset(config, train=False)
    assert (len(train), len(held)) == (20, 4)
    assert held[3]["name"] == whole[23]["name"]


def test_presence_of_a_part():
    presence = Presence(
        np.array([0, 2, 3, 6]), np.array([0, 4, 1, 0, 1, 2]), np.arange(6)
    )
    part = presence.part(range(1, 3))
    assert part.offsets.tolist() == [0, 1, 4]
    assert part.class_ids.tolist() == [1, 0, 1, 2]
    assert part.pixels.tolist() == [2, 3, 4, 5]
