"""``predict``: label maps, overlays and labels of pictures."""

import functools
import json

import numpy as np
from etils import epath

from input_pipeline.datasets.open import read_options
from input_pipeline.files.images import read_image, write_label_map
from mlseg_jax.cli.required import required
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.files import (
    check_output,
    labels_line,
    output_stems,
    picture_paths,
    write_picture,
)
from mlseg_jax.prediction.labels import write_label_scores, write_labels
from mlseg_jax.prediction.raw_values import raw_value_writer
from mlseg_jax.prediction.segmenter import load_with_config
from mlseg_jax.runs.progress import progress_bar


def run(flags) -> None:
    workdir, config = required(flags, "workdir"), flags.config
    if flags.scores:
        checkpoint = flags.checkpoint if flags["checkpoint"].present else "best"
        write_label_scores(config, workdir, checkpoint, flags.scores)
        print(flags.scores)
        return
    output, paths = epath.Path(required(flags, "output")), picture_paths(flags.images)
    if config.task == "multilabel":
        if flags.raw_values:
            raise UserError(
                "A classifier writes no label maps; leave out --raw_values."
            )
        write_labels(config, workdir, flags.checkpoint, paths, output)
        print(f"labels of {len(paths)} pictures in {output}/labels.jsonl")
        return
    segmenter = load_with_config(workdir, flags.config, flags.checkpoint)
    write = functools.partial(write_label_map, num_classes=segmenter.info.num_classes)
    if flags.raw_values:
        write = raw_value_writer(segmenter.info, workdir)
    reading = read_options(config.data)
    output.mkdir(parents=True, exist_ok=True)
    stems = output_stems(paths)
    check_output(output, stems, paths)
    batch = flags.config.eval.batch_size
    with (
        progress_bar(len(paths), 0, "predicting") as bar,
        (output / "labels.jsonl").open("w") as lines,
    ):
        for start in range(0, len(paths), batch):
            chosen = paths[start : start + batch]
            names = stems[start : start + batch]
            predictions = segmenter([read_image(path, reading) for path in chosen])
            for path, stem, prediction in zip(chosen, names, predictions, strict=True):
                label_map = prediction.label_map.astype(np.int32)
                write(output / f"{stem}.png", label_map)
                write_picture(output / f"{stem}_overlay.png", prediction.overlay())
                lines.write(json.dumps(labels_line(path, prediction)) + "\n")
                bar.update()
    print(f"{len(paths)} pictures in {output}")
