"""The augmentation of a configuration, as one function of an example and a
generator.
"""

import functools
from collections.abc import Callable

import ml_collections
import numpy as np

from input_pipeline import segments
from input_pipeline.augmentation import region_recipes
from input_pipeline.augmentation.clips import make_clip_augment
from input_pipeline.augmentation.crop_segments import CropSegments
from input_pipeline.augmentation.rand_augment import cutout, rand_augment
from input_pipeline.augmentation.transforms import (
    photometric_distortion,
    random_resize_crop_flip,
)
from input_pipeline.augmentation.views import View, pad, resize_pillow
from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.typing import IGNORE

AUGMENTATIONS = ("crop", "whole", "short_side", "large_scale_jitter", "detr", "clip")
"""mmsegmentation's crops; whole pictures for classifiers; Mask2Former's and
MaskFormer's for ADE20K, Mask2Former's for COCO, MaskFormer's for COCO; and
Mask2Former's for videos.
"""


def make_augment(
    data: ml_collections.ConfigDict,
    class_examples: np.ndarray | None = None,
    info: DatasetInfo | None = None,
):
    """The augmentation that ``data.augmentation`` names.

    Args:
      data: the part of a configuration.
      class_examples: int ``[C]``, in how many training pictures each class is; for
        crops that aim at rare ones.
      info: of the data set, for ``whole`` and for segments.

    Returns:
      A function ``(example, generator) -> example`` whose pictures all have
      ``data.crop_size``; of crops, ``image_size`` int32 ``[2]`` tells rows and
      columns that are no padding. Where ``data.segments`` wants them, the example has
      the segments of the crop; see `CropSegments.make`.

    Raises:
      DataError: a key has a value that there is not, or two do not go together.
    """
    name = data.augmentation
    if name not in AUGMENTATIONS:
        raise DataError(
            f"Unknown data.augmentation {name!r}; choose one of "
            f"{', '.join(AUGMENTATIONS)}."
        )
    if data.segments not in segments.KINDS:
        raise DataError(
            f"Unknown data.segments {data.segments!r}; choose one of "
            f"{', '.join(segments.KINDS)}."
        )
    if not 0 <= data.rare_crop_rate <= 1:
        raise DataError(
            f"data.rare_crop_rate is {data.rare_crop_rate}; give a share of the crops "
            "from 0 to 1."
        )
    if name != "crop" and data.rare_crop_rate > 0:
        raise DataError(
            f"data.rare_crop_rate is {data.rare_crop_rate}, but crops aim at rare "
            f"classes with data.augmentation=crop alone; set it to 0."
        )
    if (name == "clip") != bool(data.get("num_frames", 0)):
        raise DataError(
            f"data.augmentation is {name!r}, but clips are augmented with 'clip' and "
            "pictures are not; start from a recipe with task=video_semantic or "
            "task=video_instance for clips."
        )
    if name == "clip":
        return make_clip_augment(data, info)
    if name == "whole":
        return _make_whole(data, info.num_classes)
    return _make_crop(data, _find_view(data, class_examples), info)


def _make_whole(data: ml_collections.ConfigDict, num_classes: int):
    """Whole pictures of one size, for a classifier (method.md section 8.2).

    The label map, whose small classes would be lost in resizing, becomes ``presence``
    bool ``[C]``.
    """
    size = tuple(data.crop_size)

    def augment(example: dict, rng: np.random.Generator) -> dict:
        image = resize_pillow(example["image"], size)
        if data.cutout > 0:
            image = cutout(image, rng, data.cutout)
        if data.rand_augment:
            image = rand_augment(image, rng)
        counts = np.bincount(
            example["label_map"].ravel() + 1, minlength=num_classes + 1
        )
        rest = {key: value for key, value in example.items() if key != "label_map"}
        return {**rest, "image": image, "presence": counts[1:] > 0}

    return augment


def _find_view(
    data: ml_collections.ConfigDict, class_examples: np.ndarray | None
) -> Callable[[dict, np.random.Generator], View]:
    """How pictures are resized, cropped and mirrored."""
    crop_size = tuple(data.crop_size)
    flip = {"flip_rate": data.flip_rate}
    sides = {"short_sides": tuple(data.short_sides), "max_side": data.max_side}
    if data.augmentation == "short_side":
        return functools.partial(
            region_recipes.short_side,
            crop_size=crop_size,
            max_class_share=data.max_class_share,
            **sides,
            **flip,
        )
    if data.augmentation == "large_scale_jitter":
        return functools.partial(
            region_recipes.large_scale_jitter,
            crop_size=crop_size,
            scale_range=tuple(data.scale_range),
            **flip,
        )
    if data.augmentation == "detr":
        if min(crop_size) < data.max_side:
            raise DataError(
                f"data.max_side is {data.max_side}, but data.crop_size only "
                f"{crop_size}; with data.augmentation=detr pictures are not cropped "
                "to it, so give sides of at least data.max_side."
            )
        return functools.partial(region_recipes.detr, **sides, **flip)
    # Each class of a picture as often as one over the number of its pictures.
    weights = None
    if data.rare_crop_rate > 0:
        weights = 1 / np.maximum(class_examples, 1)
    crop = functools.partial(
        random_resize_crop_flip,
        crop_size=crop_size,
        scale_range=tuple(data.scale_range),
        max_class_share=data.max_class_share,
        class_weights=weights,
        rare_crop_rate=data.rare_crop_rate,
        **flip,
    )
    base_size = tuple(data.base_size)

    def find(example: dict, rng: np.random.Generator) -> View:
        """``base_size`` (0, 0) takes each picture's own size."""
        size = base_size if max(base_size) > 0 else example["image"].shape[:2]
        return crop(example, rng, base_size=size)

    return find


def _make_crop(
    data: ml_collections.ConfigDict,
    find_view: Callable[[dict, np.random.Generator], View],
    info: DatasetInfo | None,
):
    """Geometry, then colours (method.md section 12.2), then padding."""
    # As released, and what a person may see; training makes exact zeros of it
    # (`image_size`).
    mean = tuple(round(value) for value in data.pixel_mean)
    is_grey = data.augmentation in ("short_side", "large_scale_jitter")
    pad_colour = region_recipes.PAD_COLOUR if is_grey else mean
    canvas = tuple(data.crop_size)
    crop_segments = None
    if data.segments != "none":
        crop_segments = CropSegments(data.segments, data.max_segments, info)

    def augment(example: dict, rng: np.random.Generator) -> dict:
        view = find_view(example, rng).with_labels(example["label_map"])
        image = view.image
        if data.photometric:  # Before padding, which keeps its colour.
            image = photometric_distortion(image, rng)
        crop = {
            "image": pad(image, canvas, pad_colour),
            "image_size": np.asarray(view.size, np.int32),
            "label_map": pad(view.labels, canvas, IGNORE),
        }
        if crop_segments is not None:
            crop |= crop_segments.make(example, view, canvas)
        return example | crop

    return augment
