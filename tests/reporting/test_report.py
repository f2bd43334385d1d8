"""The report of fabricated runs: complete, empty, hostile and large."""

import html.parser
import json
import re

import numpy as np
import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.reporting import report

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(\"1\")</script> & 'co' $title https://evil.example/x.js"


def make_workdir(path, num_classes=40, k=10, num_examples=2, size=(48, 64), **more):
    """Every file that ``train`` and ``evaluate`` write, with random content."""
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(num_classes)]
    names[0], names[1] = HOSTILE, "sign GREEK SMALL LETTER ALPHA Ωж"
    config = {
        "name": "demo",
        "data": {"name": "signs", "num_classes": num_classes},
        "model": {"backbone": {"name": "vit_tiny16"}, "decoder": "segmenter"},
        "selection": {"name": "top_k", "k": k},
        "train": {"steps": 100, "batch_size": 4, "note": HOSTILE},
    }
    metrics = {
        "mIoU": 0.5, "oracle_mIoU": 0.625, "mAP": 0.75, "pixel_recall_at_k": 0.99,
        "image_recall_at_k": 0.9, "pixel_accuracy": 0.8, "wrong_not_selected": 0.05,
        "wrong_confused": 0.15, "examples": 2, "images_per_second": 12.5,
        "parameters": 105_300_000, "step": 100, "num_classes": num_classes, "k": k,
        "labels_selected": k,
    }  # fmt: skip
    classes = [
        {
            "name": name,
            "iou": None if i % 7 == 3 else float(rng.uniform()),
            "average_precision": None if i % 7 == 3 else float(rng.uniform()),
            "pixel_share": 1 / num_classes,
            "examples": i,
        }
        for i, name in enumerate(names)
    ]
    classes[0] |= {"iou": 0.0}  # the hostile name is the worst class
    evaluation = {
        "num_classes": num_classes,
        "k": k,
        "classes": classes,
        "recall_at_k": {
            "k": list(range(1, k + 1)),
            "pixel": np.linspace(0.4, 0.99, k).tolist(),
            "image": np.linspace(0.1, 0.9, k).tolist(),
        },
        "ranked": more.get("ranked", True),
        "classes_per_image": [0, 1, 5, 9, 4, 1],
        "inverse_temperature": np.linspace(20, 5, k).tolist(),
        "inverse_temperature_label": "gamma of the rank norm (1/tau)",
    }
    events = [{"step": 10 * i, "loss/total": 5.0 / (i + 1)} for i in range(400)]
    events[3]["train/learning_rate"] = 1e-4
    events.append({"step": 4000, "eval/mIoU": 0.5, "train/input_wait": 0.0})
    events.append({"step": 4000, "loss/total": float("nan"), "tag": "text"})
    log = "\n".join(map(json.dumps, events)) + '\n{"step": 4010, "loss/to'
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.json").write_text(json.dumps(metrics | more))
    (path / "metrics.jsonl").write_text(log)
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    arrays = make_pictures(rng, num_examples, size, num_classes, k)
    arrays |= {"names": np.array(names)}
    np.savez_compressed(path / "evaluation_examples.npz", **arrays)
    return path


def make_pictures(rng, num_examples, size, num_classes, k):
    arrays = {}
    for i in range(num_examples):
        truth = rng.integers(-1, num_classes, size).astype(np.int32)
        order = rng.permutation(num_classes)[: k + 5]
        arrays |= {
            f"image_{i}": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            f"truth_{i}": truth,
            f"prediction_{i}": np.roll(truth, 1).clip(0),
            f"label_ids_{i}": order,
            f"label_scores_{i}": np.linspace(1, 0, len(order), dtype=np.float32),
            f"label_selected_{i}": np.arange(len(order)) < k,
        }
    return arrays


class Checker(html.parser.HTMLParser):
    """Checks that tags balance and that no attribute loads anything from outside."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], ""
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert set(self.links) <= set(self.ids)
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value)
            if name == "href":
                assert value.startswith("#"), value
                self.links.append(value[1:])
            if name in ("src", "data", "srcset", "action", "xlink:href"):
                assert value.startswith("data:image/"), value[:80]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


def check(path):
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|<script|<link|<iframe", page)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().split()
    return page, Checker(page)


@pytest.mark.parametrize("num_classes, k", [(40, 10), (1284, 100)])
def test_complete_report(tmp_path, num_classes, k):
    path = report.write_report(make_workdir(tmp_path, num_classes, k))
    assert path == tmp_path / "report.html"
    page, parsed = check(path)
    for expected in (
        "50.0%", "12.5points", f"Pixel recall@{k}", "105.3M", "The 20 worst classes",
        "label not selected25.0%", "not finite: 1 logged", "signs",
        "gamma of the rank norm", "vit_tiny16", "class 2", "below: not selected",
    ):  # fmt: skip
        assert expected in parsed.text, expected
    assert HOSTILE in parsed.text  # escaped, so the parser gives it back unchanged
    assert parsed.tags.count("img") == 2 * 4 + 2
    assert parsed.tags.count("svg") == 7
    # The worst stand open, as many others as fit unfold.
    shown = min(500, sum(i % 7 != 3 for i in range(num_classes)))
    assert parsed.tags.count("tr") == shown + 2
    assert f"The next {shown - 20}" in parsed.text
    assert "writes it" not in parsed.text


def test_report_without_optional_files_names_the_commands(tmp_path):
    (tmp_path / "metrics.json").write_text('{"mIoU": 1, "mAP": null, "step": 3}')
    _, parsed = check(report.write_report(str(tmp_path)))
    assert "100.0%" in parsed.text and "Label mAP" not in parsed.text
    assert f"python main.py evaluate --workdir={tmp_path}" in parsed.text
    assert f"python main.py train --config=... --workdir={tmp_path}" in parsed.text
    for file in ("config.json", "metrics.jsonl", "evaluation.json", "examples.npz"):
        assert file in parsed.text


def test_report_of_empty_files(tmp_path):
    make_workdir(tmp_path, num_examples=0)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.json").write_text('{"mIoU": NaN, "oracle_mIoU": 0.5}')
    (tmp_path / "metrics.jsonl").write_text("")
    empty = {"num_classes": 0, "k": 0, "classes": [], "classes_per_image": []}
    (tmp_path / "evaluation.json").write_text(json.dumps(empty))
    _, parsed = check(report.write_report(tmp_path))
    assert "svg" not in parsed.tags and "img" not in parsed.tags


def test_a_model_without_label_scores_shows_none(tmp_path):
    make_workdir(tmp_path, num_classes=40, k=40, ranked=False)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"] = {"multilabel_head": {"name": "none"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, parsed = check(report.write_report(tmp_path))
    assert "This model scores no labels" in parsed.text
    assert "recall@40" not in parsed.text.lower()
    assert "Recall of the best" not in parsed.text
    # Ranked labels of which a picture selects only the likely ones.
    make_workdir(tmp_path, num_classes=40, k=40, labels_selected=12.5)
    _, parsed = check(report.write_report(tmp_path))
    assert "recall@40" in parsed.text.lower() and "Recall of the best" in parsed.text


def test_example_without_labels(tmp_path):
    make_workdir(tmp_path, num_examples=1)
    with np.load(tmp_path / "evaluation_examples.npz") as archive:
        arrays = dict(archive)
    arrays["truth_0"][:] = -1
    np.savez_compressed(tmp_path / "evaluation_examples.npz", **arrays)
    _, parsed = check(report.write_report(tmp_path))
    assert "0 of 0 labels selected" in parsed.text
    # A label too small for the picture that is shown.
    arrays["present_0"] = arrays["label_ids_0"][:1]
    np.savez_compressed(tmp_path / "evaluation_examples.npz", **arrays)
    _, parsed = check(report.write_report(tmp_path))
    assert "1 of 1 labels selected" in parsed.text


def test_selected_labels_may_stand_anywhere(tmp_path):
    """As the oracle selects them, or several windows."""
    make_workdir(tmp_path, num_classes=40, k=10, num_examples=1)
    with np.load(tmp_path / "evaluation_examples.npz") as archive:
        arrays = dict(archive)
    arrays["label_selected_0"] = np.isin(np.arange(15), (1, 2, 4))
    np.savez_compressed(tmp_path / "evaluation_examples.npz", **arrays)
    _, parsed = check(report.write_report(tmp_path))
    cuts = re.findall("below: (not )?selected", parsed.text)
    assert cuts == ["not ", "", "not ", "", "not "]


def test_missing_metrics_name_the_command(tmp_path):
    with pytest.raises(UserError, match=r"run `python main.py evaluate --work"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    "name", ["metrics.json", "evaluation.json", "evaluation_examples.npz"]
)
@pytest.mark.parametrize("keep", [0, 1, 40])
def test_damaged_files_name_the_command(tmp_path, name, keep):
    """Also what a disk keeps of a file after its machine has lost power."""
    make_workdir(tmp_path, num_examples=1)
    (tmp_path / "report.html").write_text("before")
    data = (tmp_path / name).read_bytes()
    for content in (data[:keep], b"[]", b"\0" * len(data)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is damaged.* evaluate --work"):
            report.write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "before"


def test_eight_large_examples_of_noise_stay_below_five_megabytes(tmp_path):
    make_workdir(tmp_path, num_classes=1284, num_examples=8, size=(600, 800))
    assert report.write_report(tmp_path).stat().length < 5_000_000
