"""The program on a folder of files, and with many or few classes."""

import json
import shutil

import cv2
import numpy as np
import pytest
from main_program import as_process, read_metrics
from PIL import Image
from tiny import tiny_config, tiny_flags

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.training.state import initialise

CLASSES = 20

# ml_collections loads configuration files in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "signs"
    result = as_process("export_dataset", *tiny_flags(), f"--output={path}")
    assert result.status == 0, result.err
    return path


def folder_flags(path, overrides=None):
    return tiny_flags(
        {
            "data.name": "folder",
            "data.path": path,
            "data.num_classes": 0,
            "data.train_examples": 0,
            "data.eval_examples": 0,
            **(overrides or {}),
        }
    )


def test_training_on_an_exported_folder(program, folder, tmp_path):
    run = tmp_path / "run"
    result = program(
        "train", *folder_flags(folder, {"train.steps": 2}), f"--workdir={run}"
    )
    assert result.status == 0, result.err
    metrics = read_metrics(run)
    assert metrics["examples"] == 6 and metrics["num_classes"] == CLASSES
    result = program(
        "predict", f"--workdir={run}", f"--images={folder / 'images/val'}",
        f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    assert "6 pictures" in result.out
    # Exporting over it would mix two data sets.
    error = program("export_dataset", *tiny_flags(), f"--output={folder}").error
    assert "not an empty folder" in error


def broken(folder, path, what):
    shutil.copytree(folder, path)
    images = sorted((path / "images/train").iterdir())
    mask = path / "masks/train" / f"{images[0].stem}.png"
    if what == "no images":
        for image in images:
            image.unlink()
    elif what == "no mask":
        mask.unlink()
    elif what == "unknown value":
        values = np.asarray(Image.open(mask)).copy()
        values[0, 0] = 200
        Image.fromarray(values).save(mask)
    elif what == "other size":
        Image.fromarray(np.zeros((16, 31), np.uint8)).save(mask)
    elif what == "truncated":
        images[0].write_bytes(images[0].read_bytes()[:-200])
    elif what == "one pixel":
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(images[0])
        Image.fromarray(np.zeros((1, 1), np.uint8)).save(mask)
    elif what == "no classes":
        (path / "classes.txt").unlink()
    return images[0], mask


@pytest.mark.parametrize(
    "what, words",
    [
        ("no images", "holds no images"),
        ("no mask", "has no mask {mask}"),
        ("unknown value", "{mask} holds the value 200"),
        ("other size", "{mask} is 31x16 pixels but its image {image} is 32x32"),
        ("truncated", "{image} is damaged"),
        ("one pixel", "{image} is 1x1 pixels"),
        ("no classes", "has no classes.txt"),
    ],
)
def test_a_folder_with_a_fault_is_refused(program, folder, tmp_path, what, words):
    path = tmp_path / "data"
    image, mask = broken(folder, path, what)
    error = program("train", *folder_flags(path), f"--workdir={tmp_path / 'run'}").error
    assert words.format(image=image, mask=mask) in error


def test_many_classes_are_written_with_16_bits(program, tmp_path):
    """C = 300, with random weights."""
    config = tiny_config({"data.num_classes": 300})
    run, out = tmp_path / "run", tmp_path / "out"
    claim_workdir(config, str(run), open_dataset(config.data, train=True).info)
    checkpoints = Checkpoints(str(run))
    checkpoints.save(0, initialise(config, 300, make_mesh(config)))
    checkpoints.wait()
    checkpoints.close()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.bmp")
    result = program(
        "predict", f"--workdir={run}", f"--images={tmp_path / 'a.bmp'}",
        f"--output={out}", "--config.selection.eval_name=complete",
    )  # fmt: skip
    assert result.status == 0, result.err
    label_map = cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED)
    assert label_map.dtype == np.uint16 and label_map.shape == (32, 32)
    (line,) = (out / "labels.jsonl").read_text().splitlines()
    ids = {label["class_id"] for label in json.loads(line)["labels"]}
    assert set(np.unique(label_map)) <= ids == set(range(300))


def test_fewer_classes_than_k_is_said_and_works(program, tmp_path):
    run = tmp_path / "run"
    result = program(
        "train", *tiny_flags({"selection.k": 30, "train.steps": 1}), f"--workdir={run}"
    )
    assert result.status == 0, result.err
    assert "selection.k is 30, but there are 20 classes: all are selected" in result.err
    assert read_metrics(run)["k"] == CLASSES
