"""The study: its rows, resuming, tables and pictures; no run is trained here."""

import os
import sys

import pytest

from configs import study as rows
from input_pipeline.files.images import read_image
from mlseg_jax.errors import UserError
from mlseg_jax.reporting.study import Study
from mlseg_jax.reporting.study_report import draw_study, study_text

PROGRAM = """
import json, pathlib, sys
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[2:])
folder = pathlib.Path(flags.get("output", flags["workdir"]))
if (folder.parent / "fail").exists():
    sys.exit(1)
if sys.argv[1] == "train":
    (folder / "config.json").write_text("{}")
    wanted = f"{folder.parent.name} from {folder.parent.parent}/zero/seed_0"
    assert flags.get("config.init") == (None if "zero" in str(folder) else wanted)
    score = 0.1 * (1 + int(flags["config"].rsplit("=", 1)[1]))
    with (folder / "metrics.jsonl").open("w") as file:
        for seconds in (9.0, 0.5, 0.5):
            file.write(json.dumps({"step": 1, "train/step_seconds": seconds}) + "\\n")
else:
    trained = json.loads((pathlib.Path(flags["workdir"]) / "metrics.json").read_text())
    score = trained["mIoU"] + float(flags["config.selection.eval_k"])
metrics = {"mIoU": score, "labels_selected": 5, "mAP": None}
metrics |= {"wrong_pixels": 0.5, "wrong_not_selected": 0.25}
(folder / "metrics.json").write_text(json.dumps(metrics))
recall = {"k": [1, 2], "pixel": [0.5, 1.0], "image": [0.5, 0.75]}
details = {"classes_per_image": [0, 2, 1, 0, 0], "inverse_temperature": [2.0, 1.0]}
(folder / "evaluation.json").write_text(json.dumps(details | {"recall_at_k": recall}))
with (folder.parent / "count").open("a") as file:
    file.write("x")
"""


RECIPE = """
from configs import study
def get_config(argument):
    return study.get_config("row=mlseg,size=small")
"""


def test_rows_are_what_their_tables_say():
    known = set(rows.ROWS) | set(rows.EVALUATED)
    assert {row for table in rows.TABLES.values() for row in table} == known
    assert {row for group in rows.in_order() for row in group} == set(rows.ROWS)
    assert set(rows.CHAIN) | set(rows.BARS) <= known
    for size in rows.SIZES:
        rows.get_config(f"row={rows.PRETRAINED},size={size}")
        for row in rows.ROWS:
            config = rows.get_config(f"row={row},size={size},seed=2")
            config.update_from_flattened_dict(rows.from_pretrained(row, "first"))
            assert config.seed == 2 and config.is_locked
            assert 1 <= config.selection.k <= config.data.num_classes
        for source, settings in rows.evaluated(size).values():
            config = rows.get_config(f"row={source},size={size}")
            config.update_from_flattened_dict(settings)  # Keys and types are right.
            assert config.selection.eval_k <= config.data.num_classes
    assert rows.get_config("row=k_all").selection.k == 120
    assert rows.get_config("row=k_half").selection.k == 20
    assert rows.get_config("row=mt").selection.name == "complete"
    assert rows.evaluated("small")["mlseg_eval_k_half"][1] == {"selection.eval_k": 20}


@pytest.mark.parametrize("system", ["linux", "another"])
def test_a_study_resumes_and_tabulates(tmp_path, monkeypatch, system):
    if system == "another":  # where nobody chooses the cores of a process
        for name in ("sched_getaffinity", "sched_setaffinity"):
            monkeypatch.delattr(os, name, raising=False)
    program = tmp_path / "main.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", [str(program)])
    recipe = tmp_path / "c.py"
    recipe.write_text(RECIPE)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "fail").touch()
    evaluated = {"a_more": ("a", {"selection.eval_k": 1})}
    take = lambda row, workdir: {"init": f"{row} from {workdir}"}  # noqa: E731
    options = {"first": "zero", "take": take, "num_places": 2}
    study = Study(str(recipe), "toy", [["a"], ["b"]], evaluated, tmp_path, **options)
    with pytest.raises(UserError, match="output.txt"):
        study.run()
    (tmp_path / "b" / "fail").unlink()
    results = study.run()
    assert study.run() == results == study.results()
    assert (tmp_path / "zero" / "count").read_text() == "x"
    for row in ("a", "b", "a_more"):  # Once for each seed, whatever was asked for.
        assert (tmp_path / row / "count").read_text() == "xxx"
        assert [run["seed"] for run in results[row]] == [0, 1, 2]
        for run in results[row]:
            assert run["done"] and run["peak_bytes"] > 2**20
            assert min(run["cpu_seconds"], run["wall_seconds"]) > 0.0
    old = tmp_path / "b/seed_2/config.json"
    old.write_text('{"train": {"batch_size": 3}}')
    with pytest.raises(UserError, match="b/seed_2 was trained with train.batch_size=3"):
        study.run()
    chain = ("a", "b", "a_more", "never run")
    text = study_text({"Both": ["a", "a_more", "never run"]}, chain, results)
    start = "3 | 5.0 +- 0.0 | 20.0 +- 10.0 | - | - | - | 50.0 +- 0.0 | 25.0 +- 0.0"
    assert f"| a | {start} | 500 +- 0 |" in text
    assert "| a_more | 3 | 5.0 +- 0.0 | 120.0 +- 10.0 |" in text and "never" not in text
    assert "| a | b | 3 | 0.0 +- 0.0 |" in text
    assert "| a | a_more | 3 | 100.0 +- 0.0 |" in text
    for done, gaps in ((("a",), 0), (("a", "b"), 1)):  # The others are to come.
        text = study_text({}, chain, {row: results[row] for row in done})
        assert text.count("\n| a | ") == gaps
    draw_study({"a": "A", "never run": "B"}, "a", results, tmp_path / "study.png")
    assert read_image(tmp_path / "study.png").shape == (380, 1200, 3)
