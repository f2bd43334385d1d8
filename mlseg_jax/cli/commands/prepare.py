"""What each command does; flags in, files and lines out."""

import json
import logging
import math
import pathlib
import sys

import jax
import numpy as np
from etils import epath

from input_pipeline.datasets.open import open_dataset
from input_pipeline.files.images import read_image, write_label_map
from input_pipeline.files.local_copy import cache_directory
from input_pipeline.preparation.export import export_folder
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.models.macs import Macs
from mlseg_jax.prediction.files import (
    check_output,
    labels_line,
    output_stems,
    picture_paths,
    write_picture,
)
from mlseg_jax.prediction.labels import write_label_scores, write_labels
from mlseg_jax.prediction.segmenter import load_with_config
from mlseg_jax.reporting import report as report_page
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.runs.workdir import load_info, load_parameters
from mlseg_jax.settings import recipes
from mlseg_jax.tasks.given_selection import add_given_labels
from mlseg_jax.training import long_tail
from mlseg_jax.training.final_evaluation import evaluate_and_write
from mlseg_jax.training.loop import train as train_model

SCORES = (
    *("mIoU", "mIoU_frequent", "mIoU_common", "mIoU_rare", "oracle_mIoU", "mAP"),
    *("pixel_recall_at_k", "pixel_accuracy"),
)
MAX_COUNTED = 10_000
"""Training examples that `evaluate` reads, once, to know which classes are rare."""


def start() -> None:
    """Settings of the process, before the first array."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", cache_directory("xla"))


def train(flags) -> None:
    config = _need(flags, "config")
    metrics = train_model(config, _need(flags, "workdir"))
    if metrics:
        _print_scores(metrics, flags.workdir)


def evaluate(flags) -> None:
    workdir, config = _need(flags, "workdir"), flags.config
    model, parameters, step = load_parameters(workdir, config, flags.checkpoint)
    source = open_dataset(config.data, train=False)
    if source.info.class_names != load_info(workdir).class_names:
        raise UserError(
            f"The data set {config.data.name!r} has other classes than {workdir} was "
            f"trained on; evaluate on data with the same classes."
        )
    source = add_given_labels(config, workdir, source, train=False)
    output = flags.output or workdir
    epath.Path(output).mkdir(parents=True, exist_ok=True)
    metrics, _ = evaluate_and_write(
        config,
        output,
        model,
        {flags.checkpoint: parameters},
        step,
        source,
        _training_presence(config, workdir),
    )
    _print_scores(metrics, output)


def _training_presence(config, workdir: str):
    """Which classes are rare in training; None where its data is not at hand."""
    try:
        source = open_dataset(config.data, train=True)
    except UserError as error:
        logging.getLogger(__name__).warning("no mIoU of rare classes: %s", error)
        return None
    few = len(source) <= MAX_COUNTED
    return long_tail.training_presence(config, source, workdir, count=few)


def predict(flags) -> None:
    workdir, config = _need(flags, "workdir"), flags.config
    if flags.scores:
        checkpoint = flags.checkpoint if flags["checkpoint"].present else "best"
        write_label_scores(config, workdir, checkpoint, flags.scores)
        print(flags.scores)
        return
    output, paths = epath.Path(_need(flags, "output")), picture_paths(flags.images)
    if config.task == "multilabel":
        write_labels(config, workdir, flags.checkpoint, paths, output)
        print(f"labels of {len(paths)} pictures in {output}/labels.jsonl")
        return
    segmenter = load_with_config(workdir, flags.config, flags.checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    stems = output_stems(paths)
    check_output(output, stems, paths)
    num_classes = segmenter.info.num_classes
    batch = flags.config.eval.batch_size
    with (
        progress_bar(len(paths), 0, "predicting") as bar,
        (output / "labels.jsonl").open("w") as lines,
    ):
        for start in range(0, len(paths), batch):
            chosen = paths[start : start + batch]
            names = stems[start : start + batch]
            predictions = segmenter([read_image(path) for path in chosen])
            for path, stem, prediction in zip(chosen, names, predictions, strict=True):
                label_map = prediction.label_map.astype(np.int32)
                write_label_map(output / f"{stem}.png", label_map, num_classes)
                write_picture(output / f"{stem}_overlay.png", prediction.overlay())
                lines.write(json.dumps(labels_line(path, prediction)) + "\n")
                bar.update()
    print(f"{len(paths)} pictures in {output}")


def convert(flags) -> None:
    from mlseg_jax.pretrained import convert as conversion

    if flags.to:
        from mlseg_jax.pretrained.export import export_weights

        output = _need(flags, "output")
        print(
            export_weights(_need(flags, "workdir"), output, flags.to, flags.checkpoint)
        )
        return
    weights = _need(flags, "weights")
    if flags.config is None:
        print(conversion.suggestion(weights))
        return
    converted = conversion.convert(
        flags.config, weights, _need(flags, "workdir"), flags.classes
    )
    conversion.print_converted(converted)


def summary(flags) -> None:
    config = _need(flags, "config")
    num_classes = config.data.num_classes
    if num_classes == 0:
        num_classes = open_dataset(config.data, train=True).info.num_classes
    model = FunctionalModel.build(config, num_classes)
    shapes = model.learned
    sizes = {path: math.prod(shape.shape) for path, shape in shapes.items()}
    parts = {}
    for path, size in sizes.items():
        part = path.split("/", 1)[0]
        parts[part] = parts.get(part, 0) + size
    macs = count_macs(config, model)
    total = sum(macs.values(), Macs())
    if flags.json:
        print(
            json.dumps(
                {
                    "parameters": sum(sizes.values()),
                    "macs": total.exact,
                    "paper_macs": total.paper,
                    "parameters_by_part": parts,
                    "macs_by_part": {k: part.exact for k, part in macs.items()},
                    "paper_macs_by_part": {k: part.paper for k, part in macs.items()},
                    "num_classes": num_classes,
                    "input": list(config.data.crop_size),
                }
            )
        )
        return
    from clu import parameter_overview

    print(parameter_overview.get_parameter_overview(shapes, include_stats=False))
    head = "part", "parameters", "multiply-accumulates", "as in the paper"
    print("{:20}{:>16}{:>24}{:>20}".format(*head))
    rows = [(k, parts.get(k, 0), macs.get(k, Macs())) for k in parts | macs]
    for part, size, count in [*rows, ("total", sum(sizes.values()), total)]:
        print(f"{part:20}{size:16,}{count.exact:24,}{count.paper:20,}")
    height, width = config.data.crop_size
    print(f"C = {num_classes} classes, one picture of {height}x{width}")


def plan(flags) -> None:
    # Here, because other commands need no compiler for machines that are not there.
    from mlseg_jax.planning import plan as planning
    from mlseg_jax.planning import topologies

    config = _need(flags, "config")
    topology = topologies.parse_topology(_need(flags, "topology"))
    topologies.prepare(topology)
    batch = flags.batch
    if flags.largest_batch:
        batch = planning.largest_batch(
            config, topology, batch or 1, effort=flags.effort
        )
        if batch == 0:
            raise UserError(f"Not even one image per chip fits on {topology.name}.")
    made = planning.plan(config, topology, batch, effort=flags.effort)
    rows = []
    if flags.label_table:
        rows = planning.label_table(config, topology, batch, effort=flags.effort)
    if flags.json:
        print(json.dumps(made.as_json() | {"label_table": rows}))
        return
    print(planning.as_text(made))
    if rows:
        print("\n" + planning.table_text(rows))


def report(flags) -> None:
    if flags.study:
        _study(flags)
        return
    path = report_page.write_report(_need(flags, "workdir"))
    _print_scores(json.loads((path.parent / "metrics.json").read_text()), flags.workdir)
    print(path)


def _study(flags) -> None:
    from mlseg_jax.reporting.study import Study
    from mlseg_jax.reporting.study_report import draw_study, study_text

    rows = recipes.get("study")
    workdir = pathlib.Path(_need(flags, "workdir"))
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


def prepare(flags) -> None:
    # Here, because it imports TFDS, which other commands need not wait for.
    from input_pipeline.preparation.prepare import prepare as prepare_dataset

    wanted = {key: _need(flags, key) for key in ("dataset", "manual_dir", "data_dir")}
    if flags.num_workers is not None and flags.num_workers < 0:
        raise UserError("--num_workers counts processes; give 0 or more.")
    bars = {}

    def show(split: str, done: int, total: int) -> None:
        if split not in bars:
            bars[split] = progress_bar(total, done, f"preparing {split}")
        bars[split].update(done - bars[split].n)

    try:
        path = prepare_dataset(
            wanted["dataset"],
            wanted["manual_dir"],
            wanted["data_dir"],
            num_workers=flags.num_workers,
            allow_incomplete=flags.allow_incomplete,
            on_bad_example=flags.on_bad_example,
            progress=show,
        )
    finally:
        for bar in bars.values():
            bar.close()
    print(path)


def doctor(flags) -> None:
    from mlseg_jax.doctor import doctor as examination

    config = _need(flags, "config")
    if flags.sample < 0:
        raise UserError("--sample counts examples; give 0 for all, or more.")
    report = examination.examine(config, sample=flags.sample)
    print(json.dumps(report.as_json()) if flags.json else report.as_text())
    if flags.output:
        examination.write_sheet(report, pathlib.Path(flags.output))
    if report.training_would_go_wrong:
        sys.exit(1)


def statistics(flags) -> None:
    from mlseg_jax.doctor import label_statistics

    config = _need(flags, "config")
    found = label_statistics.measure(config)
    if flags.output:
        label_statistics.draw(found, pathlib.Path(flags.output))
    print(
        json.dumps([split.as_json() for split in found])
        if flags.json
        else label_statistics.as_text(found)
    )


def export_dataset(flags) -> None:
    config, output = _need(flags, "config"), _need(flags, "output")
    sources = {
        config.data.train_split: open_dataset(config.data, train=True),
        config.data.eval_split: open_dataset(config.data, train=False),
    }
    export_folder(sources, output)
    print(output)


def _need(flags, name: str):
    value = getattr(flags, name)
    if not value:
        raise UserError(f"This command needs --{name}=...; see python main.py --help.")
    return value


def _print_scores(metrics: dict, workdir: str) -> None:
    scores = [f"{k} {metrics[k]:.3f}" for k in SCORES if metrics.get(k) is not None]
    print("  ".join(scores))
    print(f"{workdir}/metrics.json")
