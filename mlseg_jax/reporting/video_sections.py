"""The report's film strips: frames of a video, its truth, and what was found."""

from collections.abc import Mapping

import numpy as np

from mlseg_jax.prediction import visualise
from mlseg_jax.reporting.charts import Html, fill
from mlseg_jax.reporting.pieces import load_examples, picture_of
from mlseg_jax.typing import Int, UInt8

MAX_VIDEOS = 8
MAX_STRIP_SIDE = 1400
NOT_TRACKED = (228, 228, 228)
"""Colour of what is part of no track."""

LEAST_OVERLAP = 0.5
"""IoU above which a track has the colour of the true one."""


def examples(archive: bytes, *, has_tracks: bool) -> list[Html]:
    """Three film strips for each video of ``evaluation_examples.npz``."""
    entries, names = load_examples(archive, MAX_VIDEOS)
    return [_card(i, e, names, has_tracks) for i, e in enumerate(entries, 1)]


def _card(number: int, e: Mapping, names, has_tracks: bool) -> Html:
    truth, prediction = e["strip_truth"], e["strip_prediction"].astype(np.int32)
    if has_tracks:
        truth = np.maximum(truth, 0)
        prediction = in_true_numbers(truth, prediction)
        colours = track_colours(1 + int(max(truth.max(), prediction.max())))
        note = f"{np.count_nonzero(np.unique(truth))} tracks"
    else:
        colours = visualise.class_colours(names)
        note = f"{len(visualise.present_labels(np.concatenate(truth)))} labels"
    strips = {"frames": e["strip"]} | {
        name: np.stack([visualise.colourise(frame, colours) for frame in maps])
        for name, maps in {"truth": truth, "prediction": prediction}.items()
    }
    figures = []
    for name, frames in strips.items():
        alt, photo = f"{name} of video {number}", name == "frames"
        picture = picture_of(film_strip(frames), alt, MAX_STRIP_SIDE, photo)
        figures.append(fill("figure", picture=picture, caption=name))
    return fill("film strips", number=number, note=note, figures=figures)


def film_strip(
    frames: UInt8[np.ndarray, "T H W 3"], gap: int = 4
) -> UInt8[np.ndarray, "H W2 3"]:
    """Frames side by side, a white line between them."""
    line = np.full((frames.shape[1], gap, 3), 255, np.uint8)
    parts = [part for frame in frames for part in (line, frame)]
    return np.concatenate(parts[1:], axis=1)


def in_true_numbers(
    truth: Int[np.ndarray, "T H W"], prediction: Int[np.ndarray, "T H W"]
) -> Int[np.ndarray, "T H W"]:
    """The prediction, in which a track that covers a true one has its number; others
    have numbers beyond.
    """
    first = int(truth.max()) + 1
    renamed, taken = np.zeros_like(prediction), set()
    for track in np.unique(prediction[prediction > 0]).tolist():
        inside = prediction == track
        numbers, counts = np.unique(truth[inside], return_counts=True)
        number = first + track
        for true, common in zip(numbers.tolist(), counts.tolist(), strict=True):
            union = inside.sum() + (truth == true).sum() - common
            is_same = common / union > LEAST_OVERLAP
            if true > 0 and true not in taken and is_same:
                number = true
                taken.add(true)
        renamed[inside] = number
    return renamed


def track_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Of tracks by number; 0 is none of them."""
    colours = np.array(visualise.class_colours([f"track {i}" for i in range(count)]))
    colours[0] = NOT_TRACKED
    return colours
