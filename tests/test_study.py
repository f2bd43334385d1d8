"""The study: its rows, resuming, and its tables; no run is trained here."""

import json
import sys

import pytest

from configs import study as rows
from mlseg_jax import study
from mlseg_jax.errors import UserError

TRAINER = """
import json, pathlib, sys
flags = dict(a.lstrip("-").split("=", 1) for a in sys.argv[2:])
folder = pathlib.Path(flags["workdir"])
if (folder.parent / "fail").exists():
    sys.exit(1)
seed = int(flags["config"].rsplit("=", 1)[1])
metrics = {"mIoU": 0.1 * (1 + seed), "k": 5, "mAP": None}
(folder / "metrics.json").write_text(json.dumps(metrics))
with (folder.parent / "count").open("a") as file:
    file.write("x")
"""


def test_rows_are_what_their_tables_say():
    assert {row for table in rows.TABLES.values() for row in table} == set(rows.ROWS)
    for size in rows.SIZES:
        for row in rows.ROWS:
            config = rows.get_config(f"row={row},size={size},seed=2")
            assert config.seed == 2 and config.is_locked
            assert 1 <= config.selection.k <= config.data.num_classes
    assert rows.get_config("row=k_all").selection.k == 120
    assert rows.get_config("row=k_half").selection.k == 10
    assert rows.get_config("row=mt").selection.name == "complete"


def test_a_study_resumes_and_tabulates(tmp_path, monkeypatch):
    trainer = tmp_path / "main.py"
    trainer.write_text(TRAINER)
    monkeypatch.setattr(sys, "argv", [str(trainer)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "fail").touch()
    run = lambda: study.run_study("c.py", "toy", ["a", "b"], str(tmp_path))  # noqa: E731
    with pytest.raises(UserError, match="output.txt"):
        run()
    (tmp_path / "b" / "fail").unlink()
    results = run()
    assert run() == results
    for row in "ab":  # Once for each seed, however often it was asked for.
        assert (tmp_path / row / "count").read_text() == "xxx"
        assert json.loads((tmp_path / row / "seed_0" / "study.json").read_text())[
            "done"
        ]
        assert min(result["peak_bytes"] for result in results[row]) > 2**20
    text = study.study_text({"Both": ["a", "b"]}, results)
    assert "## Both" in text and "| a | 5 | 20.0 +- 10.0 | - | - |" in text
