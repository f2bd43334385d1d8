"""What the command ``predict`` does with a classifier, which segments nothing."""

import json
from collections.abc import Sequence

import ml_collections
import numpy as np
from etils import epath

from input_pipeline.datasets.open import open_dataset, read_options
from input_pipeline.files.images import read_image
from mlseg_jax.runs.workdir import load_info
from mlseg_jax.tasks.given_selection import load_classifier, write_split


def write_label_scores(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str, folder: str
) -> None:
    """Scores of every example of both splits, for the selection ``given``."""
    for train in (True, False):
        source = open_dataset(config.data, train=train)
        classifier = load_classifier(workdir, source.info, checkpoint)
        split = config.data.train_split if train else config.data.eval_split
        write_split(config, classifier, workdir, folder, source, split)


def write_labels(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str,
    paths: Sequence,
    output: epath.Path,
) -> None:
    """``labels.jsonl``: the K best labels of each picture, a picture a line."""
    classifier = load_classifier(workdir, checkpoint=checkpoint)
    names, size = load_info(workdir).class_names, classifier.batch_size
    k = config.selection.eval_k or config.selection.k
    reading = read_options(config.data)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "labels.jsonl").open("w") as lines:
        for start in range(0, len(paths), size):
            chosen = paths[start : start + size]
            scores = classifier([read_image(path, reading) for path in chosen])
            for path, row in zip(chosen, scores, strict=True):
                order = np.argsort(-row, kind="stable")[:k]
                labels = [
                    {
                        "name": names[class_id],
                        "class_id": int(class_id),
                        "score": round(float(1.0 / (1.0 + np.exp(-row[class_id]))), 6),
                        "rank": rank,
                    }
                    for rank, class_id in enumerate(order)
                ]
                lines.write(json.dumps({"image": str(path), "labels": labels}) + "\n")
