"""The augmentation of a configuration, as one function of an example and a
generator.
"""

import functools

import ml_collections
import numpy as np

from input_pipeline.transforms import photometric_distortion, random_resize_crop_flip


def make_augment(data: ml_collections.ConfigDict):
    """Random resize, crop, flip and colours (method.md section 12.2).

    Returns a function ``(example, generator) -> example`` whose pictures all have
    ``data.crop_size``. ``base_size`` (0, 0) takes each picture's own size.
    """
    apply = functools.partial(
        random_resize_crop_flip,
        crop_size=tuple(data.crop_size),
        scale_range=tuple(data.scale_range),
        max_class_share=data.max_class_share,
        flip_rate=data.flip_rate,
        # The padding becomes about zero after normalisation.
        pad_value=tuple(round(mean) for mean in data.pixel_mean),
        distortion=photometric_distortion if data.photometric else None,
    )
    base_size = tuple(data.base_size)

    def augment(example: dict, rng: np.random.Generator) -> dict:
        size = base_size if max(base_size) > 0 else example["image"].shape[:2]
        return apply(example, rng, base_size=size)

    return augment
