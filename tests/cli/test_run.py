"""The whole life of one run: trained, evaluated, predicted with and reported."""

import json
import pathlib
import re
import shutil

import cv2
import numpy as np
import pytest
from main_program import read_metrics
from PIL import Image
from tiny_videos import cut_off, frames, write_clip

SCORES = (
    "mIoU", "mAP", "pixel_recall_at_k", "image_recall_at_k", "oracle_mIoU",
    "pixel_accuracy", "examples", "seconds", "images_per_second",
)  # fmt: skip
CLASSES = 20
K = 4

# ml_collections loads configuration files in a way that Python wants to drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


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


def test_predicting_a_video(program, workdir, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames())
    command = ("predict", f"--workdir={workdir}", "--config.eval.clip_length=3")

    def predict(video, folder, *more):
        place = f"--video={video}", f"--output={tmp_path / folder}"
        return program(*command, *place, *more)

    result = predict(clip, "out", "--config.eval.selection_scope=per_clip")
    assert result.status == 0, result.err
    assert result.out == f"8 frames in {tmp_path / 'out'}\n"
    lines = (tmp_path / "out" / "labels.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(8))
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 1000
    # What can be read is done; what cannot be is said.
    error = predict(cut_off(clip, 0.7), "short").error
    assert "is damaged" in error and "frames in" in error
    wrong = {
        "does not go with --images": (clip, "--images=a.png"),
        "frame_rate": (clip, "--frame_rate=0.0004"),
        "There is no video": (tmp_path / "none.mp4",),
        "no video that can be read": (__file__,),
    }
    for sentence, (video, *more) in wrong.items():
        assert sentence in predict(video, "wrong", *more).error
    other = predict(clip, "out", "--config.data.white_value=4095").error
    assert "(other reading, settings)" in other


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


def test_a_bad_picture_does_not_end_it(program, workdir, tmp_path):
    """The rest is done; a run that fails leaves what an earlier one wrote."""
    sizes = make_pictures(tmp_path / "in")
    (tmp_path / "in" / "a_page.jpg").write_text("<html>")
    (tmp_path / "in" / "._flat.png").write_text("macOS")
    out = tmp_path / "out"

    def predict(name):
        return program(
            "predict", f"--workdir={workdir}", f"--images={tmp_path / name}",
            f"--output={out}",
        )  # fmt: skip

    result = predict("in")
    assert "a_page.jpg is damaged" in result.error
    assert f"the other 8 are in {out}" in result.error
    assert "._flat" not in result.err
    before = (out / "labels.jsonl").read_text()
    lines = [json.loads(x) for x in before.splitlines()]
    named = {line[key] for line in lines for key in ("label_map", "overlay")}
    assert {path.name for path in out.iterdir()} == named | {"labels.jsonl"}
    assert {pathlib.Path(line["image"]).stem for line in lines} == set(sizes)
    assert f"{out} is as it was" in predict("in/a_page.jpg").error
    assert (out / "labels.jsonl").read_text() == before
    assert {path.name for path in out.iterdir()} == named | {"labels.jsonl"}


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
