# ruff: noqa: E501 (a wrong line and its sentence stand on one line)
"""The program as its users know it: most in this process, a few runs as a process."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from absl import flags
from PIL import Image
from tiny import ROOT, tiny_config, tiny_flags

from input_pipeline.datasets.open import open_dataset
from mlseg_jax.cli.commands import report
from mlseg_jax.cli.program import COMMANDS
from mlseg_jax.cli.program import run as run_program
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.workdir import claim_workdir
from mlseg_jax.training.state import initialise

SCORES = (
    "mIoU", "mAP", "pixel_recall_at_k", "image_recall_at_k", "oracle_mIoU",
    "pixel_accuracy", "examples", "seconds", "images_per_second",
)  # fmt: skip
CLASSES = 20
K = 4

# ml_collections loads configuration files in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def error(self):
        """The one line that says what was wrong."""
        assert self.status == 1, self.err
        assert "Traceback" not in self.err, self.err
        lines = [x for x in self.err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1 and self.err.rstrip().endswith(lines[0]), self.err
        assert len(lines[0]) < 600
        return lines[0]


@pytest.fixture
def program(capsys, monkeypatch):
    """Runs ``python main.py ...`` in this process."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        capsys.readouterr()
        # Flags of the configuration before are forgotten.
        for name in list(flags.FLAGS):
            if name.startswith("config."):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in ("config", "workdir", "images", "output", "checkpoint", "json"):
            flags.FLAGS[name].unparse()
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        status = 0
        try:
            run_program()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


def as_process(*arguments):
    done = subprocess.run(
        [sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


# ----------------------------------------------------------------------------- parsing


def test_usage_as_a_process_and_without_jax():
    result = as_process()
    assert result.status == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.out
        assert f"main.py {command} --" in result.out
    modules = (ROOT / "mlseg_jax/cli/commands").glob("[!_]*.py")
    assert {path.stem for path in modules} == set(COMMANDS)


def test_help(program):
    usage = program().out
    for arguments in (["--help"], ["train", "--help"], ["-h"]):
        result = program(*arguments)
        assert (result.status, result.out) == (0, usage)


def test_a_misspelt_command_as_a_process():
    assert as_process("trian").error.endswith("'trian'; did you mean 'train'?")


@pytest.mark.parametrize(
    "line, words",
    [
        ("eval", "no command 'eval'; did you mean 'evaluate'"),
        ("train --config=configs/demo.py --workdri=x", "'workdri'. Did you mean: workdir"),
        ("train --config=configs/demo.py --config.train.stpes=3", "'stpes'; did you mean 'steps'"),
        ("train --config=configs/demo.py --config.trian.steps=3", "'trian'; did you mean 'train'"),
        ("train --config=configs/demo.py --config.zzz=3", "no key 'zzz'"),
        ("train --config=configs/demo.py --config.zzz.yyy=3", "no key 'zzz'"),
        ("train --config=configs/demo.py --config.train.steps=many", "--config.train.steps=many"),
        ("train --config=configs/demo.py --workdir=/tmp/x --config.data.crop_size=64", "image_size=(64,)"),
        ("train --config=configs/dmeo.py", "did you mean 'demo.py'"),
        ("train --config=nowhere/at/all", "no configuration nowhere/at/all"),
        ("train --config=configs/segmenter.py:dataset=ade2k", "did you mean 'ade20k'"),
        ("train --config=configs/segmenter.py:backbone=vit_b61", "did you mean 'vit_b16'"),
        ("train --config=configs/segmenter.py:datset=ade20k", "did you mean 'dataset'"),
        ("train --config=configs/demo.py:k=5", "not 'k=5'"),
        ("train --config=configs/demo.py", "needs --workdir"),
        ("train --workdir=/nowhere/run", "/nowhere/run is not a work directory"),
        ("evaluate --workdir", "--workdir needs a directory"),
        ("evaluate", "needs --workdir"),
        ("predict --config=configs/demo.py --workdir=/nowhere --output=/tmp/x", "No pictures are given"),
        ("evaluate --config=configs/demo.py --workdir=/nowhere", "is not a work directory"),
        ("report --workdir=/nowhere", "/nowhere"),
        ("export_dataset --config=configs/demo.py", "needs --output"),
        ("summary", "needs --config"),
        ("summary extra --config=configs/demo.py", "takes flags only, not 'extra'"),
        ("train --workdir=/tmp/x --config=configs/segmenter.py:dataset=folder", "config.data.path"),
        ("train --workdir=/tmp/x --config=configs/segmenter.py:dataset=folder --config.data.path=/nowhere", "no data folder /nowhere"),
        ("train --workdir=/tmp/x --config=configs/segmenter.py:dataset=ade20k", "has no place"),
    ],
)  # fmt: skip
def test_a_wrong_line_gets_one_sentence(program, line, words):
    assert words in program(*line.split()).error


def test_summary(program):
    arguments = ("summary", "--config=configs/segmenter.py:dataset=coco_stuff")
    told = json.loads(program(*arguments, "--json").out)
    assert told["parameters"] == 109_734_415 == sum(told["parameters_by_part"].values())
    assert isinstance(told["macs"], int) and told["macs"] > 10**10
    text = program(*arguments).out
    assert "109,734,415" in text and f"{told['macs']:,}" in text


def test_a_full_disk_is_one_sentence(program, monkeypatch):
    def fill(flags):
        raise OSError(28, "No space left on device", "/disk/run")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(report, "run", fill)
    monkeypatch.setattr(os, "_exit", leave)
    error = program("report", "--config=configs/demo.py", "--workdir=/disk/run").error
    assert "The disk is full (/disk/run); free some space" in error


# ------------------------------------------------------------------------ a whole life


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Trained by the program itself."""
    path = tmp_path_factory.mktemp("life") / "run"
    result = as_process(
        "train", *tiny_flags({"train.eval_every": 2}), "--workdir", path
    )
    assert result.status == 0, result.err
    assert f"{path}/metrics.json" in result.out and "mIoU" in result.out
    return path


def read_metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def test_training_leaves_what_is_promised(workdir):
    metrics = read_metrics(workdir)
    for key in SCORES:
        assert isinstance(metrics[key], int | float), key
    assert metrics["examples"] == 6 and metrics["step"] == 4
    assert metrics["k"] == K and metrics["num_classes"] == CLASSES
    assert metrics["oracle_mIoU"] >= 0 and 0 <= metrics["pixel_recall_at_k"] <= 1
    assert metrics["wrong_not_selected"] + metrics["wrong_confused"] == pytest.approx(1)
    config = json.loads((workdir / "config.json").read_text())
    assert config["train"]["steps"] == 4 and config["selection"]["k"] == K
    assert list((workdir / "events").glob("events.out.tfevents.*"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    for key in (
        "loss/total",
        "loss/pixel",
        "loss/multilabel",
        "train/pixel_recall_at_k",
    ):
        assert key in lines[0]
    for key in ("train/input_wait", "train/images_per_second", "train/goodput"):
        assert key in lines[3] and key not in lines[0]  # The first step is compiled.


def test_training_again_only_evaluates(program, workdir):
    before = read_metrics(workdir)
    assert program("train", "--workdir", workdir).status == 0
    assert read_metrics(workdir)["mIoU"] == before["mIoU"]
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 6
    error = program("train", f"--workdir={workdir}", "--config.seed=5").error
    assert "seed was 0, is 5" in error


def test_evaluating_with_other_selections(program, workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    trained = read_metrics(run)

    def evaluate(*arguments):
        (run / "metrics.json").unlink()
        result = program("evaluate", f"--workdir={run}", *arguments)
        assert result.status == 0, result.err
        metrics = read_metrics(run)
        assert set(SCORES) <= set(metrics)
        return metrics

    same = evaluate()
    for key, value in trained.items():
        if key not in ("seconds", "images_per_second"):
            assert same[key] == pytest.approx(value), key
    two = evaluate("--config.selection.eval_k=2", "--checkpoint=best")
    assert two["k"] == two["labels_selected"] == 2
    elsewhere = f"--output={tmp_path / 'elsewhere'}"
    program("evaluate", f"--workdir={run}", "--config.selection.eval_k=3", elsewhere)
    assert read_metrics(tmp_path / "elsewhere")["k"] == 3 and read_metrics(run) == two
    assert two["pixel_recall_at_k"] <= trained["pixel_recall_at_k"]
    oracle = evaluate("--config.selection.eval_name=oracle")
    assert oracle["mIoU"] == pytest.approx(oracle["oracle_mIoU"])
    assert oracle["pixel_recall_at_k"] == oracle["image_recall_at_k"] == 1.0
    complete = evaluate("--config.selection.eval_name=complete")
    assert complete["k"] == CLASSES and complete["pixel_recall_at_k"] == 1.0
    assert complete["wrong_not_selected"] == 0
    # Views and windows: an overlapping grid, two scales, mirrored.
    views = evaluate(
        "--config.eval.scales=(1.0,1.5)", "--config.eval.flip=True",
        "--config.eval.stride=(16,16)", "--config.eval.selection_scope=per_image",
    )  # fmt: skip
    assert views["examples"] == 6
    oracle = evaluate(
        "--config.selection.eval_name=oracle", "--config.eval.window=(16,16)",
        "--config.eval.stride=(16,16)",
    )  # fmt: skip
    assert oracle["pixel_recall_at_k"] == 1.0
    error = program("evaluate", f"--workdir={run}", "--checkpoint=7").error
    assert "no checkpoint '7'; there are latest, best and" in error
    error = program(
        "evaluate", f"--workdir={run}", "--config.selection.eval_name=given"
    ).error
    assert "selection.classifier" in error


def make_pictures(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Pictures of many kinds; their height and width as they are shown."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(colour).save(folder / "colour.jpg")
    Image.fromarray(colour[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(np.dstack([colour, colour[:, :, :1]])).save(folder / "alpha.png")
    Image.fromarray(colour).quantize(8).save(folder / "palette.gif")
    cv2.imwrite(str(folder / "deep.png"), colour[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(colour).save(folder / "turned.jpeg", exif=exif)
    Image.fromarray(colour[:3, :2]).save(folder / "tiny.PNG")
    Image.fromarray(colour[:5]).save(folder / "flat.bmp")
    (folder / "notes.txt").write_text("no picture")
    full = (40, 56)
    return {
        "colour": full, "grey": full, "alpha": full, "palette": full, "deep": full,
        "turned": (56, 40), "tiny": (3, 2), "flat": (5, 56),
    }  # fmt: skip


def test_predicting_pictures_of_all_kinds(program, workdir, tmp_path):
    sizes = make_pictures(tmp_path / "in")
    out = tmp_path / "out" / "deeper"
    result = program(
        "predict", f"--workdir={workdir}", f"--images={tmp_path / 'in'}",
        f"--output={out}",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert f"8 pictures in {out}" in result.out
    assert re.search(
        r"compiled \(or found in the cache\) [1-9]\d* programs", result.err
    )
    lines = [json.loads(x) for x in (out / "labels.jsonl").read_text().splitlines()]
    assert {pathlib.Path(line["image"]).stem for line in lines} == set(sizes)
    for line in lines:
        stem = pathlib.Path(line["image"]).stem
        label_map = np.asarray(Image.open(out / f"{stem}.png"))
        assert label_map.dtype == np.uint8 and label_map.shape == sizes[stem]
        overlay = np.asarray(Image.open(out / f"{stem}_overlay.png"))
        assert overlay.ndim == 3 and overlay.shape[2] == 3
        labels = line["labels"]
        assert [label["rank"] for label in labels] == list(range(len(labels)))
        scores = [label["score"] for label in labels]
        assert scores == sorted(scores, reverse=True)
        assert sum(x["pixel_share"] for x in labels) == pytest.approx(1.0, abs=1e-4)
        for label in labels:
            assert label["pixel_share"] == pytest.approx(
                np.mean(label_map == label["class_id"]), abs=1e-5
            )
            assert label["name"]


def test_files_of_one_stem_do_not_overwrite_each_other(program, workdir, tmp_path):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    names = ["one/a.png", "one/a.jpg", "two/a.png", "x/one/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    given = ",".join(str(tmp_path / name) for name in names)
    out = tmp_path / "out"
    result = program(
        "predict", f"--workdir={workdir}", f"--images={given}", f"--output={out}"
    )
    assert result.status == 0, result.err
    assert len(list(out.glob("*_overlay.png"))) == len(list(out.glob("*.png"))) / 2 == 4


def test_predict_never_overwrites_its_pictures(program, workdir, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    before = path.read_bytes()
    error = program(
        "predict", f"--workdir={workdir}", f"--images={path}", f"--output={tmp_path}"
    ).error
    assert "another --output" in error
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name, words",
    [
        ("nowhere.png", "There is no picture"),
        ("empty", "holds no pictures"),
        ("text.png", "text.png is damaged"),
        ("half.jpg", "half.jpg is damaged"),
        ("dot.png", "dot.png is 1x1 pixels"),
    ],
)
def test_pictures_that_cannot_be_read(program, workdir, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    _, data = cv2.imencode(".jpg", noise)
    (tmp_path / "half.jpg").write_bytes(data.tobytes()[: len(data) // 2])
    cv2.imwrite(str(tmp_path / "dot.png"), noise[:1, :1])
    error = program(
        "predict", f"--workdir={workdir}", f"--images={tmp_path / name}",
        f"--output={tmp_path / 'out'}",
    ).error  # fmt: skip
    assert words in error


def test_report(program, workdir):
    result = program("report", f"--workdir={workdir}")
    assert result.status == 0, result.err
    page = (workdir / "report.html").read_text()
    assert "<html" in page and str(workdir / "report.html") in result.out


# -------------------------------------------------------------------- a folder of files


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
