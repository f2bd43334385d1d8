"""What ``train`` says in one line each about data that it can read but that is odd."""

import logging

import ml_collections
import numpy as np

from input_pipeline.findings import check_readings
from input_pipeline.survey import survey
from mlseg_jax.settings.advice import is_advised, selection_advice

logger = logging.getLogger(__name__)

NUM_LOOKED_AT = 16
"""Training examples that are looked at, spread over the split."""


def say_oddities(config: ml_collections.ConfigDict, source) -> None:
    """Logs a line for each kind of oddity of training examples.

    ``doctor`` looks at all examples and says more.
    """
    count = min(NUM_LOOKED_AT, len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    settings = config.data
    readings = survey(source, indices, settings.num_threads, segments=settings.segments)
    good = [reading for reading in readings if reading.fault is None]
    if good and is_advised(config):
        num_labels = np.array([len(reading.class_ids) for reading in good])
        logger.info(
            "of %d examples looked at: %s",
            count,
            selection_advice(config, source.info.num_classes, num_labels),
        )
    name = settings.train_split
    for finding in check_readings(
        name, source, source.info, good, settings.max_segments
    ):
        logger.warning(
            "of %d examples looked at: %s Run doctor to see all.",
            count,
            finding.message,
        )
