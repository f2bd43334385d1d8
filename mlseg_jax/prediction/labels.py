"""What the command ``predict`` does with a classifier, which segments nothing."""

import json
from collections.abc import Sequence

import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from input_pipeline.datasets.open import open_dataset, read_options
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.prediction.batches import check_done, predictions
from mlseg_jax.prediction.files import LABELS, replaced_when_complete
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.runs.workdir import load_info
from mlseg_jax.tasks.given_selection import load_classifier, write_split
from mlseg_jax.training.kept import validation_config


def write_label_scores(
    config: ml_collections.ConfigDict, workdir: str, checkpoint: str, folder: str
) -> None:
    """Scores of every example of all splits, for the selection ``given``."""
    splits = [(config, True), (config, False)]
    if config.data.validation_split:
        splits.append((validation_config(config), False))
    for config, train in splits:
        source = open_dataset(config.data, train=train)
        classifier = load_classifier(workdir, source.info, checkpoint, config)
        split = config.data.train_split if train else config.data.eval_split
        write_split(config, classifier, workdir, folder, source, split)


def write_labels(
    config: ml_collections.ConfigDict,
    workdir: str,
    checkpoint: str,
    paths: Sequence[epath.Path],
    output: epath.Path,
    problems: list[str],
) -> int:
    """``labels.jsonl``: the K best labels of each picture, a picture a line.

    Sentences about pictures that cannot be read are added to ``problems``. Returns how
    many lines there are.
    """
    classifier = load_classifier(workdir, checkpoint=checkpoint, config=config)
    names, done = load_info(workdir).class_names, 0
    selection = config.selection
    policy = SelectionPolicy(
        "given",
        selection.eval_k or selection.k,
        selection.minimum_score,
        selection.cumulative,
    )
    size, reading = classifier.batch_size, read_options(config.data)
    with (
        replaced_when_complete(output) as folder,
        progress_bar(len(paths), 0, "predicting") as bar,
        (folder / LABELS).open("w") as lines,
    ):
        for index, scores in predictions(paths, classifier, size, problems, reading):
            best = policy.given_by(jnp.asarray(scores)[None])
            order = np.asarray(best.class_ids[0])
            if best.valid is not None:
                order = order[np.asarray(best.valid[0])]
            labels = [
                {
                    "name": names[class_id],
                    "class_id": int(class_id),
                    "score": round(float(1.0 / (1.0 + np.exp(-scores[class_id]))), 6),
                    "rank": rank,
                }
                for rank, class_id in enumerate(order)
            ]
            line = {"image": str(paths[index]), "labels": labels}
            lines.write(json.dumps(line) + "\n")
            done += 1
            bar.update(index + 1 - bar.n)
        if not done:
            check_done(0, problems, output)
    return done
