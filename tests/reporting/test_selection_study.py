"""The study of label selection: its splits, its cells, plan, intervals and blindness.

No run is trained here: a stand-in for the program writes scores and what it was told.
"""

import json
import os
import signal
import sys
import types

import pytest

from configs import selection_study as rows
from input_pipeline.datasets.sign_scenes import SignScenes
from input_pipeline.datasets.split_parts import split_part
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import check_config
from mlseg_jax.reporting.cells import Cell, CellFiles, digest, flat_values
from mlseg_jax.reporting.selection_report import plan_text, results_text
from mlseg_jax.reporting.selection_study import SelectionStudy, revision
from mlseg_jax.reporting.timed_process import (
    children_end_with_us,
    is_done,
    read_cost,
    run_timed,
)
from mlseg_jax.runs.progress import UNFINISHED

PROGRAM = """
import json, pathlib, sys
with (pathlib.Path(sys.argv[0]).parent / "told.txt").open("a") as told:
    told.write(" ".join(sys.argv[1:]) + "\\n")
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[2:])
folder = pathlib.Path(flags.get("output", flags["workdir"]))
if (folder.parent / "fail").exists():
    sys.exit(1)
seed = 0
if sys.argv[1] == "train":
    (folder / "config.json").write_text("{}")
    seed = int(flags["config"].rsplit("=", 1)[1])
score = 0.5 + 0.1 * seed + 0.02 * ("row=mlseg," in flags.get("config", ""))
metrics = {"mIoU": score, "oracle_mIoU": 0.75, "mAP": None, "labels_selected": 5}
metrics |= {"wrong_pixels": 0.5, "wrong_not_selected": 0.25, "wrong_absent": 0.125}
(folder / "metrics.json").write_text(json.dumps(metrics | {"seconds": 3.0}))
row = {"name": "a", "intersection": 1, "predicted": 2, "labelled": 3}
details = {"classes": [row, row], "recall_at_k": {}, "inverse_temperature": [2.0]}
(folder / "evaluation.json").write_text(json.dumps(details))
"""

INTERRUPTED = """
import os, signal, sys, time
def save(*_):
    print("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
study = int(os.environ["STUDY"])
assert os.getpgid(study) != os.getpgid(0), "Ctrl-C would reach both"
os.kill(study, signal.SIGINT)
time.sleep(60)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    program = tmp_path / "main.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", [str(program)])
    stages = {
        "scenes": ("toy", "steps", ("baseline", "mlseg"), 2),
        "again": ("toy", "steps", ("baseline",), 1),
        "photographs": ("camvid", "steps", ("baseline",), 1),
    }
    own = types.ModuleType("rows")
    vars(own).update(vars(rows))
    own.STAGES, own.FINAL = stages, ()
    return SelectionStudy(own, tmp_path / "cells", workdir=tmp_path / "runs")


def told(study):
    path = study.workdir.parent / "told.txt"
    return path.read_text().splitlines() if path.exists() else []


# -------------------------------------------------------------------------- protocol


def test_every_cell_trains_and_chooses_without_the_test_split():
    study = SelectionStudy(rows, "cells")
    cells = study.all_cells()
    assert len(set(cells)) == len(cells) > 0
    assert {cell.size for cell in cells} <= set(rows.SIZES)
    first = [cell for cell in cells if cell.seed == 0]
    first += [Cell("toy", "steps", row, 3) for row in rows.ROWS]
    first += [Cell(size, "steps", "mlseg", 1) for size in rows.SIZES]
    for cell in first:
        config = study.config(cell)
        check_config(config)
        data, test = config.data, rows.TEST[rows.kind_of(cell.size)]
        for split in (data.train_split, data.eval_split):
            assert split_part(split).name != test
        assert config.seed == cell.seed and config.is_locked
        steps = rows.num_steps(cell.row, cell.size, cell.budget)
        if "train.steps" not in rows.ROWS[cell.row][1]:
            assert config.train.steps == steps
        assert config.train.eval_every == config.train.steps
        assert 1 <= config.selection.k <= data.num_classes
        pictures = {"data.path", "selection.classifier", "init", "init_part"}
        places = rows.take(cell.row, cell.size, "first", "data_sets")
        assert places.keys() <= pictures and places
        config.update_from_flattened_dict(places)
    for size in rows.SCENES:
        first = rows.get_config(f"row={rows.PRETRAINED},size={size}")
        assert (first.data.train_split, first.data.eval_split) == ("train", "val")


def test_a_size_may_start_from_the_backbone_of_another(study):
    study.rows.PRETRAINED_ON = {"toy": "c120"}
    study.run()
    first, cell, *_ = told(study)
    assert "size=c120" in first and f"init={study.workdir}/c120/pretrained" in cell


def test_what_is_as_long_under_either_budget_is_one_cell(study):
    study.rows.STAGES = {"both": ("toy", "cost", ("baseline", "mlseg"), 1)}
    assert [c.budget for c in study.cells("both")] == ["steps", "cost"]
    study.run()
    table = results_text(study, ("baseline",))
    assert "## toy, equal cost" in table and "## toy, equal steps" not in table
    assert all(f"| {row} | 1 |" in table for row in ("baseline", "mlseg"))


def test_the_splits_of_photographs_are_disjoint_and_neighbours_are_apart():
    train, validation = (split_part(s) for s in rows.SPLITS["photographs"])
    assert train.name == validation.name != split_part(rows.TEST["photographs"]).name
    first, second = train.of(367), validation.of(367)
    assert first.start == 0 and first.stop < second.start
    assert abs(len(second) - 0.2 * 367) <= 1
    # CamVid's validation clip, the test here, lies after frame 350.
    assert second.stop < 350


def test_the_splits_of_scenes_are_disjoint():
    splits = (*rows.SPLITS["scenes"], rows.TEST["scenes"])
    seen = set()
    for split in splits:
        source = SignScenes(num_classes=20, image_size=32, split=split)
        seen |= {source[i]["image"].tobytes() for i in range(12)}
    assert len(set(splits)) == 3 and len(seen) == 36


def test_a_row_cannot_choose_its_splits(study):
    study.rows.ROWS = {**rows.ROWS, "sly": ("", {"data.eval_split": "test"}, "mlseg")}

    def get_config(argument):
        config = rows.get_config(argument.replace("row=sly", "row=mlseg"))
        config.data.eval_split = "test"
        return config

    study.rows.get_config = get_config
    with pytest.raises(UserError, match="reads 'train' and 'test', but the study"):
        study.config(Cell("toy", "steps", "sly", 0))


def test_equal_cost_has_fixed_numbers_of_steps():
    steps = rows.SIZES["toy"]["steps"]
    times = rows.STEP_TIMES["toy"]
    assert rows.num_steps("baseline", "toy", "cost") == steps
    assert rows.num_steps("mlseg", "toy", "cost") == round(steps / times["mlseg"])
    with pytest.raises(ValueError, match="budget"):
        rows.num_steps("mlseg", "toy", "money")


# ----------------------------------------------------------------------------- cells


def test_cells_run_once_and_are_taken_up(study):
    (study.workdir / "toy_steps").mkdir(parents=True)
    fail = study.workdir / "toy_steps" / "fail"
    fail.touch()
    with pytest.raises(UserError, match="output.txt"):
        study.run()
    fail.unlink()
    seen = []
    study.run(seen.append)
    assert [(c.row, c.seed) for c in seen] == [
        *(("baseline", 0), ("mlseg", 0), ("baseline", 1), ("mlseg", 1))
    ]
    trained = told(study)
    assert sum("row=pretrained" in line for line in trained) == 1
    assert len(trained) == 1 + 1 + 4  # the backbone, the failure, the cells
    for line in trained[1:]:
        assert f"--config.init={study.workdir}/toy/pretrained" in line
    assert not any("_split" in line or "evaluate" in line for line in trained)
    study.run(seen.append)  # nothing is left
    elsewhere = SelectionStudy(study.rows, study.files.folder, workdir="nowhere")
    elsewhere.run(seen.append)
    assert told(study) == trained and len(seen) == 4

    found = study.found(Cell("toy", "steps", "mlseg", 1))
    assert found["scores"]["mIoU"] == pytest.approx(0.62)
    assert "seconds" not in found["scores"] and found["scores"]["mAP"] is None
    assert found["counts"] == {
        **{"intersection": [1, 1], "predicted": [2, 2], "labelled": [3, 3]}
    }
    assert found["cost"]["cpu_seconds"] > 0 and found["cost"]["peak_bytes"] > 2**20
    assert found["digest"] == digest(found["configuration"])
    assert found["configuration"]["data.eval_split"] == "val"
    assert not {"init", "data.path"} & found["configuration"].keys()
    assert str(study.workdir) not in json.dumps(found)


def test_a_run_of_other_values_becomes_no_cell(study):
    study.rows.STAGES = {"again": ("toy", "steps", ("baseline",), 1)}
    study.run()
    cell = Cell("toy", "steps", "baseline", 0)
    study.files.path(cell).unlink()
    config = study.workdir / cell.name / "config.json"
    config.write_text('{"train": {"batch_size": 3}}')
    sentence = f"{config.parent} was trained with train.batch_size=3, .* delete the fol"
    with pytest.raises(UserError, match=sentence):
        study.run()
    assert study.found(cell) is None


def test_what_an_interrupted_process_cost_counts(tmp_path, monkeypatch):
    """The study is told to end: the run saves, and its time is noted."""
    program = tmp_path / "main.py"
    program.write_text(INTERRUPTED)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("STUDY", str(os.getpid()))
    folder, running = tmp_path / "run", set()
    # A suite in the background may have been told to ignore it.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_timed("train", [], folder, set(), running)
    finally:
        signal.signal(signal.SIGINT, usual)
    before = read_cost(folder)
    assert (folder / "output.txt").read_text() == "saved\n"
    assert before["cpu_seconds"] > 0 and not running and not is_done(folder)
    program.write_text("")
    run_timed("train", [], folder, set(), running)
    after = read_cost(folder)
    assert after["cpu_seconds"] > before["cpu_seconds"] and after["done"]
    # Scores of `evaluate`, while the training is not at its end.
    unfinished = folder / UNFINISHED
    for path in (folder / "metrics.json", unfinished):
        path.write_text("{}")
    assert not is_done(folder)
    unfinished.unlink()
    assert is_done(folder)


def test_a_study_that_lost_its_terminal_tells_its_runs(monkeypatch):
    told = []
    monkeypatch.setattr(os, "kill", lambda process, number: told.append(process))
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), children_end_with_us({77}):
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with children_end_with_us({77}):
            signal.raise_signal(signal.SIGHUP)  # nohup: it goes on
    finally:
        signal.signal(signal.SIGHUP, usual)
    assert told == [77]


def test_photographs_need_their_folder(study):
    study.data_dir = "pictures"
    study.rows.STAGES = {"p": ("camvid", "steps", ("baseline",), 1)}
    study.run()
    (line,) = told(study)
    assert "--config.data.path=pictures/camvid_small" in line and "init" not in line
    study.data_dir = None
    (study.workdir / "camvid_steps" / "baseline_0" / "study.json").unlink()
    with pytest.raises(UserError, match="--data_dir=DIRECTORY"):
        study._train(Cell("camvid", "steps", "baseline", 0))


def test_a_cell_of_other_values_is_refused(tmp_path):
    files, cell = CellFiles(tmp_path), Cell("toy", "steps", "mlseg", 0)
    config = rows.get_config(cell.argument)
    assert files.read(cell, config) is None
    values = flat_values(config)
    files.write(cell, {"configuration": values | {"since.gone": 3}})
    files.path(cell).with_suffix(".partial").write_text("{")  # killed while writing
    assert files.read(cell, config)["configuration"]["since.gone"] == 3
    del values["train.log_every"]  # a key that came later
    files.write(cell, {"configuration": values})
    assert files.read(cell, config)
    config.optimizer.learning_rate = 0.5
    sentence = "mlseg_0.json was run with optimizer.learning_rate=0.0007, .* 0.5 now"
    with pytest.raises(UserError, match=sentence):
        files.read(cell, config)
    files.path(cell).write_text("{")
    with pytest.raises(UserError, match="is no cell of a study"):
        files.read(cell, config)


def test_the_test_split_is_read_once_and_last(study):
    with pytest.raises(UserError, match="FINAL .* names no stage"):
        study.read_test()
    study.rows.FINAL = ("scenes",)
    study.rows.TEST_PICTURES = {"toy": 7}
    with pytest.raises(UserError, match="4 cells of the final stages are not finished"):
        study.read_test()
    study.run()
    before = told(study)
    assert not any("evaluate" in line for line in before)
    study.read_test()
    lines = told(study)[len(before) :]
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("evaluate")
        assert "--config.data.eval_split=test --config.data.eval_examples=7" in line
    study.read_test()
    assert len(told(study)) == len(before) + 4
    cell = Cell("toy", "steps", "baseline", 0)
    found = study.found(cell, test=True)
    assert found["configuration"]["data.eval_split"] == "test"
    tables = results_text(study, ("baseline",), test=True)
    assert "On the test split" in tables and "| baseline | 2 |" in tables
    study.rows.TEST_PICTURES = {"toy": 8}
    with pytest.raises(UserError, match="baseline_0.test.json was run with data.eval"):
        study.found(cell, test=True)
    assert study.found(cell)["configuration"]["data.eval_split"] == "val"


# ------------------------------------------------------------------------------ texts


def test_plan_and_results(study):
    text = plan_text(study)
    assert f"| scenes | 4 | 0 | 0.00 | {4 * 20 / 3600:.2f} |" in text
    assert "| again | 0 | 0 | 0.00 | 0.00 |" in text
    study.run()
    assert "| scenes | 4 | 4 | " in plan_text(study)
    assert "| all | 5 | 4 | " in plan_text(study)
    text = results_text(study, ("baseline", "mlseg"))
    start = "55.0 +- 7.1 | 75.0 +- 0.0 | - | 5.0 +- 0.0 | 50.0 +- 0.0 | 25.0 +- 0.0 |"
    assert f"| baseline | 2 | {start} 12.5 +- 0.0 |" in text
    assert "| +2.0 +- 0.0 (2 seeds) | - |" in text
    assert "| - | -2.0 +- 0.0 (2 seeds) |" in text


def test_revision_names_a_commit_or_nothing():
    assert revision() == "" or len(revision()) >= 7
