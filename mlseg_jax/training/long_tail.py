"""Rare classes: how often each occurs in training, and what is made of it.

The classes of every training example come from the preparation of a data set, or are
counted once and kept in the work directory until the data changes. From them follow
the sampling of examples (``data.repeat_factor``) and of crops
(``data.rare_crop_rate``), the weights and offsets of the pixel loss
(``loss.class_weighting``, ``loss.logit_adjustment``), and which classes are rare in the
metrics (`metrics.class_groups`).
"""

import hashlib
import json
import logging
import os
import pathlib
import zipfile
import zlib

import jax
import ml_collections
import numpy as np
from etils import epath

from input_pipeline.datasets.data_version import data_facts
from input_pipeline.preparation.class_statistics import Presence
from input_pipeline.resample import Resampled, repeat_factors, repeated_indices
from input_pipeline.survey import survey, to_presence
from mlseg_jax.losses.class_priors import ClassPriors, class_priors
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.typing import Int

logger = logging.getLogger(__name__)

PRESENCE_FILE = "training_presence.npz"


def is_used(config: ml_collections.ConfigDict) -> bool:
    """Whether the training itself depends on how often classes occur."""
    return bool(
        config.data.repeat_factor > 0
        or config.data.rare_crop_rate > 0
        or config.loss.class_weighting != "none"
        or config.loss.logit_adjustment
    )


def training_presence(
    config: ml_collections.ConfigDict, source, workdir: str, *, count: bool
) -> Presence | None:
    """The classes of each training example; kept in the work directory once counted.

    Args:
      config: the configuration.
      source: the training split.
      workdir: of the run.
      count: whether to read every example where nobody has counted yet, or a file has
        changed since. If not, None is the result where nobody has, and counts of before
        are good enough, with a warning.
    """
    presence = getattr(source, "presence", None)
    if presence is not None:
        return presence
    path = epath.Path(workdir) / PRESENCE_FILE
    stored = _read(path)
    if stored is None and not count:
        return None
    key = _key(config.data, source, workdir)
    if stored is not None:
        # The first process has judged: a copy of the data has other times.
        if str(stored["key"]) == key or jax.process_index() > 0:
            return Presence(*(stored[name] for name in _FIELDS))
        if not count and str(stored["key"]).split()[0] == key.split()[0]:
            logger.warning(
                "%s was counted before a file of the data changed; it is used", path
            )
            return Presence(*(stored[name] for name in _FIELDS))
        logger.info("%s is not of the training data as it is now", path)
    if not count:
        return None
    presence = count_presence(source, config.data.num_threads)
    if jax.process_index() == 0:
        # Beside it first, then renamed: a kill leaves no half of a file. Two
        # evaluations of a run may do so at once.
        part = path.parent / f"{path.name}.{os.getpid()}.part"
        with part.open("wb") as file:
            arrays = {name: getattr(presence, name) for name in _FIELDS}
            np.savez_compressed(file, key=key, **arrays)
        part.replace(path)
    return presence


_FIELDS = ("offsets", "class_ids", "pixels")


def _read(path: epath.Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where there is none, or not a whole one."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in ("key", *_FIELDS)}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        logger.warning("%s is damaged and not used", path)
        return None


_LABEL_KEYS = (
    *("name", "train_split", "train_examples", "label_key", "paint_order"),
    *("background", "image_folder", "mask_folder", "image_ending", "mask_ending"),
)
"""Keys of the data that choose the examples or say how their labels are read."""


def _key(data: ml_collections.ConfigDict, source, workdir: str) -> str:
    """Of all that the counts depend on: what is set, and then the files."""
    facts = [len(source), source.info.class_names, *map(data.get, _LABEL_KEYS)]
    settings = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    files = hashlib.sha256()
    for fact in data_facts(data, pathlib.Path(workdir)):
        files.update(fact)
    return f"{settings} {files.hexdigest()}"


def count_presence(source, num_threads: int) -> Presence:
    """Reads a whole split for the classes of its examples."""
    with progress_bar(len(source), 0, "counting classes") as bar:

        def readings():
            for reading in survey(source, range(len(source)), num_threads, False):
                bar.update()
                yield reading

        return to_presence(readings())


def resample(config: ml_collections.ConfigDict, source, presence: Presence | None):
    """The training split with rare classes repeated, if the configuration says so."""
    threshold = config.data.repeat_factor
    if threshold == 0:
        return source
    indices = repeated_indices(repeat_factors(presence, threshold), config.seed)
    logger.info(
        "repeat_factor: an epoch has %d examples, %d of them repeated",
        len(indices),
        len(indices) - len(source),
    )
    return Resampled(source, indices)


def loss_priors(
    config: ml_collections.ConfigDict, presence: Presence | None, num_classes: int
) -> ClassPriors:
    """What the configured pixel loss needs to know about the classes."""
    pixels = None
    if presence is not None:
        pixels = np.asarray(presence.statistics(num_classes)["class_pixels"])
    return class_priors(
        pixels, config.loss.class_weighting, config.loss.logit_adjustment
    )


def class_examples(
    presence: Presence | None, num_classes: int
) -> Int[np.ndarray, "C"] | None:
    """In how many training images each class is, where that is known."""
    if presence is None:
        return None
    return np.asarray(presence.statistics(num_classes)["class_examples"])
