"""``report``: the page of an evaluated run; with ``--study`` the paper's ablations, or
the study of label selection.
"""

import json
import pathlib

from mlseg_jax.cli.flags import required
from mlseg_jax.cli.scores import print_scores
from mlseg_jax.reporting.limit_files import limits_of_run
from mlseg_jax.reporting.report import write_report
from mlseg_jax.reporting.selection_report import plan_text, results_text
from mlseg_jax.reporting.selection_study import SelectionStudy
from mlseg_jax.reporting.study import Study
from mlseg_jax.reporting.study_report import draw_study, study_text
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.settings import recipes

CELLS = "docs/study"
"""Where the finished cells of the study of label selection are, in a checkout."""


def run(flags) -> None:
    if flags.study == "selection":
        _selection_study(flags)
        return
    if flags.study:
        _study(flags)
        return
    path = write_report(required(flags, "workdir"))
    metrics = json.loads((path.parent / "metrics.json").read_text())
    print_scores(metrics, flags.workdir)
    for limit in limits_of_run(path.parent, metrics):
        print(f"{limit.text} Try this: {limit.change}")
    print(path)


def _study(flags) -> None:
    rows = recipes.get("study")
    workdir = pathlib.Path(required(flags, "workdir"))
    study = Study(
        "configs/study.py",
        flags.study,
        rows.in_order(),
        rows.evaluated(flags.study),
        workdir,
        first=rows.PRETRAINED,
        take=rows.from_pretrained,
        num_places=rows.SIZES[flags.study]["at_a_time"],
    )

    def write() -> str:
        runs = study.results()
        text = study_text(rows.TABLES, rows.CHAIN, runs)
        (workdir / "study.md").write_text(text)
        draw_study(rows.BARS, "mlseg", runs, workdir / "study.png")
        return text

    with progress_bar(1, 0, f"study {flags.study}") as bar:

        def show(name: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(name)
            if done:
                write()

        study.run(on_run=show)
    print(write())
    print(workdir / "study.md")


def _selection_study(flags) -> None:
    study = SelectionStudy(
        recipes.get("selection_study"),
        flags.output or CELLS,
        workdir=None if flags.plan else required(flags, "workdir"),
        data_dir=flags.data_dir,
    )
    if flags.plan:
        print(plan_text(study))
        return

    def show(cell) -> None:
        print(f"{cell.name}", flush=True)

    if flags.read_test:
        study.read_test(show)
    else:
        study.run(show)
    print(results_text(study, study.rows.AGAINST, test=flags.read_test))
