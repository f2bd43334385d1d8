"""Pictures of files in batches, past those that cannot be read or segmented."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline.files.images import USUAL, ReadOptions, read_image
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError

logger = logging.getLogger(__name__)

MAX_BATCH_PIXELS = 2**24
"""Pictures of a batch that are larger together come alone."""


def predictions(
    paths: Sequence[os.PathLike],
    predict: Callable[[list[np.ndarray]], Sequence],
    batch_size: int,
    problems: list[str],
    options: ReadOptions = USUAL,
) -> Iterator[tuple[int, Any]]:
    """What ``predict`` makes of each picture, with the picture's place in ``paths``.

    A picture that cannot be read, or is too large for the memory, is said in the log,
    added to ``problems`` and passed over.
    """
    for indices, images in _batches(paths, batch_size, problems, options):
        try:
            results = predict(images)
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            results = None
        if results is not None:
            yield from zip(indices, results, strict=True)
            continue
        for index, image in zip(indices, images, strict=True):
            try:
                (result,) = predict([image])
            except Exception as error:
                if not is_lack_of_memory(error):
                    raise
                height, width = image.shape[:2]
                _report(
                    problems,
                    f"Picture {paths[index]} ({width}x{height}) needs more memory than "
                    f"there is; predict it in windows (--config.eval.mode=slide).",
                )
                continue
            yield index, result


def _batches(paths, batch_size: int, problems: list[str], options: ReadOptions):
    indices, images, pixels = [], [], 0
    for index, path in enumerate(paths):
        try:
            image = read_image(path, options)
        except DataError as error:
            _report(problems, str(error))
            continue
        more = image.shape[0] * image.shape[1]
        if images and (len(images) == batch_size or pixels + more > MAX_BATCH_PIXELS):
            yield indices, images
            indices, images, pixels = [], [], 0
        indices.append(index)
        images.append(image)
        pixels += more
        del image
    if images:
        yield indices, images


def _report(problems: list[str], sentence: str) -> None:
    logger.warning("%s", sentence)
    problems.append(sentence)


def is_lack_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and "RESOURCE_EXHAUSTED" in str(error)
    )


def check_done(done: int, problems: Sequence[str], output) -> None:
    """Ends a command that could not do all pictures.

    Raises:
      UserError: there are problems; which were said one by one before.
    """
    if not problems:
        return
    first = problems[0].rstrip(".")
    others = f" (and {len(problems) - 1:,} more, said above)" if problems[1:] else ""
    kept = f"the other {done:,} are in {output}" if done else f"{output} is as it was"
    raise UserError(f"Not all pictures could be predicted: {first}{others}; {kept}.")
