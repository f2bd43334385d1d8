"""How clips are resized and mirrored in training: all frames of one alike.

As Mask2Former does it for videos (method.md 12.4, masks.md 6.2): a short side and a
flip are drawn once for a clip, nothing is cropped, and what lies outside of the frames
is grey. Batches have one size, so a frame that is longer than the canvas, such as one
of an upright video, is shrunk to fit.
"""

import copy

import ml_collections
import numpy as np

from input_pipeline import segments
from input_pipeline.augmentation.crop_segments import largest
from input_pipeline.augmentation.region_recipes import PAD_COLOUR
from input_pipeline.augmentation.transforms import photometric_distortion
from input_pipeline.augmentation.views import (
    View,
    pad,
    resize_pillow,
    short_side_size,
)
from input_pipeline.info import DatasetInfo
from mlseg_jax.typing import IGNORE, Int


def make_clip_augment(data: ml_collections.ConfigDict, info: DatasetInfo | None):
    """The augmentation ``clip``; see the module docstring.

    Returns:
      A function ``(example, generator) -> example`` whose ``image`` is uint8
      ``[T H W 3]`` and ``label_map`` int32 ``[T H W]``, on canvases of
      ``data.crop_size``; with ``image_size``, and with the segments of the clip where
      ``data.segments`` wants them (`clip_segments`).
    """
    canvas = tuple(data.crop_size)
    short_sides = tuple(data.short_sides)

    def augment(example: dict, rng: np.random.Generator) -> dict:
        short_side = int(rng.choice(short_sides))
        is_mirrored = rng.random() < data.flip_rate
        views = [
            _view(image, short_side, data.max_side, canvas, is_mirrored)
            for image in example["image"]
        ]
        images = [view.image for view in views]
        if data.photometric:  # The same for all frames.
            images = [photometric_distortion(x, copy.deepcopy(rng)) for x in images]
        maps = {"label_map", "instance_map"} & example.keys()
        clip = {
            name: np.stack(
                [
                    pad(view.take(frame), canvas, IGNORE if name == "label_map" else 0)
                    for view, frame in zip(views, example[name], strict=True)
                ]
            )
            for name in maps
        }
        clip["image"] = np.stack([pad(x, canvas, PAD_COLOUR) for x in images])
        clip["image_size"] = np.asarray(views[0].size, np.int32)
        if data.segments != "none":
            named = clip | {"name": example["name"]}
            clip |= clip_segments(data.segments, named, info, data.max_segments)
        return example | clip

    return augment


def _view(image, short_side: int, max_side: int, canvas, is_mirrored: bool) -> View:
    height, width = short_side_size(image.shape[:2], short_side, max_side)
    factor = min(1.0, canvas[0] / height, canvas[1] / width)
    size = max(1, int(height * factor)), max(1, int(width * factor))
    view = View.whole(image).resized(size, resize_pillow)
    return view.mirrored() if is_mirrored else view


def clip_segments(
    kind: str, clip: dict, info: DatasetInfo, max_segments: int
) -> dict[str, Int[np.ndarray, "..."]]:
    """The segments of a clip, those that any of its frames shows.

    A class (``classes``) or a track (``instances``) is one segment in all frames; where
    it is absent its mask is empty. Crowds are no segments. Of more than
    ``max_segments`` the largest stay.

    Returns:
      ``masks`` int32 [T H W], numbers 0..M-1 and IGNORE; ``segment_classes`` int32 [M],
      IGNORE where there is none; ``dropped_segments`` int32 [].

    Raises:
      DataError: the data set has no instances, but they are wanted.
    """
    shape = clip["label_map"].shape
    # Below each other: what has one number is one segment.
    tall = {
        name: clip[name].reshape(-1, shape[2])
        for name in {"label_map", "instance_map"} & clip.keys()
    }
    parts = segments.parts_of(kind, clip | tall, info)
    areas = np.where(parts.is_crowd, 0, parts.areas)
    kept = largest(areas, max_segments)
    numbers = np.full(len(areas), IGNORE)
    numbers[kept] = np.arange(len(kept))
    classes = np.full(max_segments, IGNORE, np.int32)
    classes[: len(kept)] = parts.class_ids[kept]
    return {
        "masks": parts.make_map(numbers, IGNORE).reshape(shape),
        "segment_classes": classes,
        "dropped_segments": np.int32(np.count_nonzero(areas) - len(kept)),
    }
