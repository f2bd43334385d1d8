"""The independent scheme: a frozen classifier selects for a Segmenter (method.md 8.3).

The classifier is frozen and looks at whole pictures, so its scores are computed once,
before the training, and not again in every step.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Iterator

import jax
import ml_collections

from input_pipeline.datasets.bad_examples import Skips, drop_bad
from input_pipeline.datasets.data_version import data_facts
from input_pipeline.datasets.given_labels import (
    WithGivenLabels,
    read_facts,
    write_scores,
)
from input_pipeline.info import DatasetInfo
from input_pipeline.pipeline import evaluation_examples
from mlseg_jax.distributed.processes import first_process_first
from mlseg_jax.distributed.sharding import own_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters
from mlseg_jax.tasks.engines import check_given


def load_classifier(
    workdir: str,
    info: DatasetInfo | None = None,
    checkpoint: str = "best",
    config: ml_collections.ConfigDict | None = None,
) -> LabelScorer:
    """The trained classifier of a work directory, which must know the same classes.

    ``config``: the run's, perhaps with other weights or another batch size; without one
    as it was trained.

    Raises:
      UserError: it is no classifier, or knows other classes than ``info``.
    """
    own = load_config(workdir) if config is None else config
    config = own.copy_and_resolve_references()
    config.mesh.update(data=-1, fsdp=1)  # the devices of its training need not be here
    if config.task != "multilabel":
        raise UserError(
            f"{workdir} is no classifier of labels (its task is {config.task!r}); "
            f"train one with configs/query2label.py."
        )
    if info is not None and load_info(workdir).class_names != info.class_names:
        raise UserError(
            f"The classifier {workdir} was trained on other classes than the data set "
            f"{info.name!r} has; train one on its classes."
        )
    model, parameters, _ = load_parameters(workdir, config, checkpoint)
    return LabelScorer(config, model, parameters, own_mesh(config))


def add_given_labels(
    config: ml_collections.ConfigDict, workdir: str, source, *, part: str
):
    """The split with the scores by which labels are selected, where these are given.

    They come from ``selection.scores``, a folder, or from ``selection.classifier``, a
    work directory: then the scores are computed once and kept in ``workdir``.
    ``part`` is train, eval or validation, each asked for once by all processes.
    """
    selection = config.selection
    train = part == "train"
    name = selection.name if train else selection.eval_name or selection.name
    if name != "given":
        return source
    check_given(config)
    split = config.data.train_split if train else config.data.eval_split
    folder, stem = selection.scores, split
    if not folder:
        # One split can be several parts, of more or of fewer examples.
        folder, stem = f"{workdir}/label_scores", f"{split}-{len(source)}"

        def write() -> None:
            # Others would judge by their own copy of the data.
            if jax.process_index() == 0:
                _write_once(config, folder, stem, split, source)

        first_process_first(f"label scores of {part}", write)
    given = WithGivenLabels(source, folder, stem)
    missing = len(source) - given.num_scored
    if missing > 0 and config.data.on_bad_example == "fail":
        raise UserError(
            f"{folder} has no label scores of {missing} of the {len(source)} examples "
            f"of the split {split!r}; write the scores of this data set."
        )
    return given


def _write_once(config, folder: str, stem: str, split: str, source) -> None:
    facts, workdir = read_facts(folder, stem), config.selection.classifier
    wanted = _facts(config, workdir, folder, source, split)
    if facts is None or any(facts.get(key) != wanted[key] for key in wanted):
        classifier = load_classifier(workdir, source.info)
        write_split(config, classifier, workdir, folder, source, split, stem)


def _facts(
    config: ml_collections.ConfigDict, workdir: str, folder: str, source, split: str
) -> dict[str, str]:
    """What scores in a folder are of; ``workdir``: the classifier's."""
    digest = hashlib.sha256()
    for fact in data_facts(config.data, pathlib.Path(folder).parent, split):
        digest.update(fact)
    return {
        "data": f"{config.data.name} {config.data.path} {len(source)}",
        "files": digest.hexdigest(),
        "classifier": workdir,
    }


def write_split(
    config: ml_collections.ConfigDict,
    classifier: LabelScorer,
    workdir: str,
    folder: str,
    source,
    split: str,
    stem: str = "",
) -> None:
    """Scores every example of a split into a folder; ``workdir``: the classifier's.

    ``stem`` is that of the files' names, the split's name where it is not given.
    """
    with progress_bar(len(source), 0, f"scoring {split}") as bar:

        def batches() -> Iterator[tuple]:
            skips = Skips()
            examples = evaluation_examples(
                drop_bad(source, config.data.on_bad_example, skips),
                num_threads=config.data.num_threads,
            )
            while group := list(itertools.islice(examples, classifier.batch_size)):
                names = [example["name"] for example in group]
                yield names, classifier([example["image"] for example in group])
                bar.update(len(group))
            skips.log(f"split {split!r}")

        write_scores(
            folder,
            stem or split,
            source.info,
            len(source),
            batches(),
            **_facts(config, workdir, folder, source, split),
        )
