"""The augmentation of a configuration, as one function of an example and a
generator.
"""

import functools

import ml_collections
import numpy as np

from input_pipeline.augmentation.rand_augment import (
    cutout,
    rand_augment,
    resize_exactly,
)
from input_pipeline.augmentation.transforms import (
    photometric_distortion,
    random_resize_crop_flip,
)
from input_pipeline.info import DataError


def make_augment(
    data: ml_collections.ConfigDict,
    class_examples: np.ndarray | None = None,
    num_classes: int | None = None,
):
    """The augmentation that ``data.augmentation`` names.

    Args:
      data: the part of a configuration.
      class_examples: int ``[C]``, in how many training pictures each class is.
      num_classes: C, for ``whole``.

    Returns:
      A function ``(example, generator) -> example`` whose pictures all have
      ``data.crop_size``.
    """
    if data.augmentation == "crop":
        return _make_crop(data, class_examples)
    if data.augmentation == "whole":
        return _make_whole(data, num_classes)
    raise DataError(
        f"Unknown data.augmentation {data.augmentation!r}; choose crop or whole."
    )


def _make_whole(data: ml_collections.ConfigDict, num_classes: int):
    """Whole pictures of one size, for a classifier (method.md section 8.2).

    The label map, whose small classes would be lost in resizing, becomes ``presence``
    bool ``[C]``.
    """
    size = tuple(data.crop_size)

    def augment(example: dict, rng: np.random.Generator) -> dict:
        image = resize_exactly(example["image"], size)
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


def _make_crop(data: ml_collections.ConfigDict, class_examples: np.ndarray | None):
    """Random resize, crop, flip and colours (method.md section 12.2).

    Args:
      data: the part of a configuration.
      class_examples: int ``[C]``, in how many training pictures each class is; needed
        where ``data.rare_crop_rate`` is over 0. A crop that aims at a rare class draws
        among those of its picture, each as often as one over this number says.

    Returns:
      A function ``(example, generator) -> example`` whose pictures all have
      ``data.crop_size``. ``base_size`` (0, 0) takes each picture's own size.
    """
    if not 0 <= data.rare_crop_rate <= 1:
        raise DataError(
            f"data.rare_crop_rate is {data.rare_crop_rate}; give a share of the crops "
            "from 0 to 1."
        )
    class_weights = None
    if data.rare_crop_rate > 0:
        class_weights = 1 / np.maximum(class_examples, 1)
    apply = functools.partial(
        random_resize_crop_flip,
        crop_size=tuple(data.crop_size),
        scale_range=tuple(data.scale_range),
        max_class_share=data.max_class_share,
        flip_rate=data.flip_rate,
        # What a person may see; training makes exact zeros of it (`image_size`).
        pad_value=tuple(round(mean) for mean in data.pixel_mean),
        distortion=photometric_distortion if data.photometric else None,
        class_weights=class_weights,
        rare_crop_rate=data.rare_crop_rate,
    )
    base_size = tuple(data.base_size)

    def augment(example: dict, rng: np.random.Generator) -> dict:
        size = base_size if max(base_size) > 0 else example["image"].shape[:2]
        return apply(example, rng, base_size=size)

    return augment
