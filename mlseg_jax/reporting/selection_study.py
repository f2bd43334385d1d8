"""Runs the cells of the study of label selection (docs/selection_study.md).

One process at a time on one core, so that it can go on at low priority beside other
work; a cell that was interrupted goes on from its last checkpoint. Nothing here reads
the test split but `SelectionStudy.read_test`.
"""

import json
import os
import pathlib
import subprocess
import types
from collections.abc import Callable

import jax

from mlseg_jax.errors import UserError
from mlseg_jax.reporting.cells import Cell, CellFiles, check_run, digest, flat_values
from mlseg_jax.reporting.study import flags_of, read_run
from mlseg_jax.reporting.timed_process import children_end_with_us, run_timed
from mlseg_jax.runs.checkpoint import without_nan

CONFIG = "configs/selection_study.py"
SEED_OF_FIRST = 0
COSTS = ("cpu_seconds", "wall_seconds", "peak_bytes", "step_seconds")
COUNTS = ("intersection", "predicted", "labelled")
TIMES = ("seconds", "images_per_second")
"""Of the metrics what is no score."""


class SelectionStudy:
    """The cells of all stages.

    Attributes:
      rows: the module of ``configs/selection_study.py``.
      workdir: where the runs are; None only looks at what there is.
      files: the finished cells.
      data_dir: folder of the data sets of photographs.
    """

    def __init__(
        self,
        rows: types.ModuleType,
        cells_folder: str | os.PathLike,
        *,
        workdir: str | os.PathLike | None = None,
        data_dir: str | None = None,
    ):
        self.rows = rows
        self.files = CellFiles(cells_folder)
        self.workdir = pathlib.Path(workdir) if workdir else None
        self.data_dir = data_dir
        self._running = set()

    def cells(self, stage: str) -> list[Cell]:
        """Of a stage; all rows with one seed come before the next.

        A row with as many steps under either budget, as the baseline, is one cell.
        """
        size, budget, rows, num_seeds = self.rows.STAGES[stage]
        first, *_ = self.rows.BUDGETS

        def steps_of(row: str, budget: str) -> int:
            return self.rows.get_config(Cell(size, budget, row, 0).argument).train.steps

        budgets = [
            first if steps_of(row, first) == steps_of(row, budget) else budget
            for row in rows
        ]
        return [
            Cell(size, its_budget, row, seed)
            for seed in range(num_seeds)
            for row, its_budget in zip(rows, budgets, strict=True)
        ]

    def all_cells(self) -> list[Cell]:
        """Of all stages in order, each once."""
        return list(
            dict.fromkeys(
                cell for stage in self.rows.STAGES for cell in self.cells(stage)
            )
        )

    def config(self, cell: Cell):
        """Of a cell; never one that reads the test split."""
        config = self.rows.get_config(cell.argument)
        splits = self.rows.SPLITS[self.rows.kind_of(cell.size)]
        if (config.data.train_split, config.data.eval_split) != splits:
            raise UserError(
                f"The cell {cell.name} reads {config.data.train_split!r} and "
                f"{config.data.eval_split!r}, but the study trains and chooses on "
                f"{' and '.join(map(repr, splits))}; take the splits out of its row."
            )
        return config

    def test_config(self, cell: Cell):
        """Of a cell's evaluation on the test split."""
        config = self.config(cell)
        config.data.eval_split = self.rows.TEST[self.rows.kind_of(cell.size)]
        config.data.eval_examples = self.rows.TEST_PICTURES.get(
            cell.size, config.data.eval_examples
        )
        return config

    def found(self, cell: Cell, *, test: bool = False) -> dict | None:
        """A finished cell, None where it is not finished."""
        config = self.test_config(cell) if test else self.config(cell)
        return self.files.read(cell, config, test=test)

    def run(self, on_cell: Callable[[Cell], None] = lambda cell: None) -> None:
        """Runs every cell that is not finished, in the order of the stages.

        Photographs are left out where no ``data_dir`` was given.

        Raises:
          UserError: a cell failed.
        """
        for cell in self.all_cells():
            if self.found(cell) is None and not self._lacks_data(cell):
                on_cell(cell)
                folder = self._train(cell)
                self._take_up(cell, folder, self.config(cell))

    def read_test(self, on_cell: Callable[[Cell], None] = lambda cell: None) -> None:
        """Scores the cells of ``FINAL`` on the test split, each once.

        Raises:
          UserError: choices are still open, or a cell failed.
        """
        if not self.rows.FINAL:
            raise UserError(
                f"FINAL in {CONFIG} names no stage: the test split is read once, when "
                f"all choices are made."
            )
        cells = [cell for stage in self.rows.FINAL for cell in self.cells(stage)]
        missing = [cell for cell in cells if self.found(cell) is None]
        if missing:
            raise UserError(
                f"{len(missing)} cells of the final stages are not finished, such as "
                f"{missing[0].name}; run them before the test split is read."
            )
        for cell in cells:
            if self.found(cell, test=True) is not None:
                continue
            on_cell(cell)
            folder = self._train(cell)  # again, where its weights are gone
            config = self.test_config(cell)
            flags = [f"--workdir={folder}", f"--output={folder}/test"]
            data = ("eval_split", "eval_examples")
            flags += flags_of({f"data.{key}": config.data[key] for key in data})
            self._process("evaluate", flags, folder / "test")
            self._take_up(cell, folder / "test", config, test=True)

    # ------------------------------------------------------------------------- runs

    def _lacks_data(self, cell: Cell) -> bool:
        return cell.size in self.rows.PHOTOGRAPHS and not self.data_dir

    def _train(self, cell: Cell) -> pathlib.Path:
        """The run of a cell, taken up where it stood."""
        folder = self.workdir / cell.name
        if self._lacks_data(cell):
            raise UserError(
                f"The cell {cell.name} needs its photographs; give the folder of data "
                f"sets as --data_dir=DIRECTORY."
            )
        pretrained = self.rows.PRETRAINED
        size = self.rows.PRETRAINED_ON.get(cell.size, cell.size)
        first = Cell(size, cell.budget, pretrained, SEED_OF_FIRST)
        place = self.workdir / size / pretrained
        if cell.size not in self.rows.PHOTOGRAPHS:
            self._train_in(place, first, "")
        self._train_in(folder, cell, str(place))
        return folder

    def _train_in(self, folder: pathlib.Path, cell: Cell, pretrained: str) -> None:
        places = self.rows.take(cell.row, cell.size, pretrained, self.data_dir)
        flags = [f"--config={CONFIG}:{cell.argument}", f"--workdir={folder}"]
        self._process("train", flags + flags_of(places), folder)
        config = self.config(cell)
        config.update_from_flattened_dict(places)
        check_run(folder, config)  # It may have been finished before.

    def _process(self, command: str, flags: list[str], folder: pathlib.Path) -> None:
        with children_end_with_us(self._running):
            run_timed(command, flags, folder, _one_core(), self._running)

    def _take_up(self, cell: Cell, folder: pathlib.Path, config, **where) -> None:
        """Makes a finished run a cell."""
        run, values = read_run(folder), flat_values(config)
        metrics = without_nan(json.loads((folder / "metrics.json").read_text()))
        details = json.loads((folder / "evaluation.json").read_text())
        classes = details["classes"]
        found = {
            "cell": cell._asdict(),
            "revision": revision(),
            "jax": jax.__version__,
            "digest": digest(values),
            "scores": {k: v for k, v in metrics.items() if k not in TIMES},
            "cost": {key: run.get(key) for key in COSTS},
            "counts": {key: [row[key] for row in classes] for key in COUNTS},
            "inverse_temperature": run.get("inverse_temperature"),
            "configuration": values,
        }
        self.files.write(cell, found, **where)


def revision() -> str:
    """Of the program, with what is not committed said; empty where git knows none."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    place = pathlib.Path(__file__).parent
    try:
        answer = subprocess.run(command, cwd=place, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip()


def _one_core() -> set[int]:
    """One of those this process may use; empty where the system has no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    return {max(os.sched_getaffinity(0))}
