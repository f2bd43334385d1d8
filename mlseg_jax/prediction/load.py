"""From a work directory to a segmenter."""

import functools
import os
from typing import no_type_check

from etils import epath

from input_pipeline.datasets.open import read_options
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference.clip_engine import ClipEngine
from mlseg_jax.models.build import check_config
from mlseg_jax.prediction import fonts
from mlseg_jax.prediction.clip_pictures import ClipPictures
from mlseg_jax.prediction.segmenter import Segmenter
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters
from mlseg_jax.tasks.engines import evaluation_policy
from mlseg_jax.tasks.given_selection import load_classifier
from mlseg_jax.tasks.table import find_task


@no_type_check
def load(workdir: str | os.PathLike, checkpoint: str = "kept") -> Segmenter:
    """The model that was trained in ``workdir``.

    Args:
      workdir: a work directory that ``train`` wrote.
      checkpoint: ``kept`` (the one that ``eval.checkpoint`` of the run says),
        ``latest``, ``best`` (by mIoU) or a step.
    """
    if not isinstance(workdir, str | os.PathLike) or not os.fspath(workdir):
        raise UserError(f"workdir is {workdir!r}; give the directory of a run.")
    workdir, checkpoint = os.fspath(epath.Path(workdir).expanduser()), str(checkpoint)
    config = load_config(workdir)
    # The devices of the training need not be here.
    config.mesh.update(data=-1, fsdp=1)
    return load_with_config(workdir, config, checkpoint)


def load_with_config(workdir: str, config, checkpoint: str) -> Segmenter:
    """As `load`, with changes to the ``eval`` and ``selection`` parts."""
    check_config(config)
    fonts.check(config.eval.font)
    info = load_info(workdir)
    if config.task == "multilabel":
        raise UserError(
            f"{workdir} holds a classifier, which segments nothing; its labels come "
            f"from `python main.py predict --workdir={workdir} --images=...`."
        )
    policy = evaluation_policy(config, info.num_classes)
    classifier = None
    if policy.name == "oracle":
        raise UserError(
            "The selection 'oracle' looks at true label maps, which new pictures have "
            "not; set selection.eval_name to top_k or complete."
        )
    if policy.name == "given":
        if not config.selection.classifier:
            raise UserError(
                "The labels of new pictures are in no folder of scores; set "
                "selection.classifier to the work directory of the classifier."
            )
        classifier = load_classifier(config.selection.classifier, info)
    model, parameters, step = load_parameters(workdir, config, checkpoint)
    task = find_task(config)
    engine = task.make_engine(config, model, parameters, make_mesh(config))
    if isinstance(engine, ClipEngine):
        engine = ClipPictures(engine, model.num_queries)
    reading, font = read_options(config.data), config.eval.font
    find = task.find_segments
    if find is not None:
        find = functools.partial(find, settings=config.eval, info=info)
    return Segmenter(
        *(engine, info, policy, classifier),
        find_segments=find,
        reading=reading,
        font=font,
        step=step,
    )
