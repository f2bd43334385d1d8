"""A model of which one knows what it says, and an engine that runs it."""

import jax.numpy as jnp
import numpy as np
from shrink import segmenter_config

from mlseg_jax.inference.engine import Engine
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.models.interfaces import FeatureMap, LabelPrediction, Output

C, K, PATCH = 9, 3, 4
POLICY = SelectionPolicy("top_k", K)


class FakeModel:
    """Label scores from the mean colour, logits from the patches' colours.

    Stands in for `FunctionalModel` as well: ``bind`` gives itself.
    """

    any_canvas = True
    num_queries, multiple = 0, 1  # It classifies pixels.

    def __init__(self, num_classes=C, seed=0):
        rng = np.random.default_rng(seed)
        self.num_classes = num_classes
        self.to_scores = rng.normal(size=(3, num_classes)).astype(np.float32)
        self.to_logits = rng.normal(size=(3, num_classes)).astype(np.float32)

    def bind(self, parameters):
        return self

    def encode(self, images, image_size=None):
        batch, height, width, _ = images.shape
        pixels = images.astype(jnp.float32) / 32 - 4
        if image_size is None:
            image_size = jnp.tile(jnp.asarray([[height, width]]), (batch, 1))
        inside = (jnp.arange(height)[None, :, None] < image_size[:, :1, None]) & (
            jnp.arange(width)[None, None] < image_size[:, 1:, None]
        )
        pixels = jnp.where(inside[..., None], pixels, 0.0)
        pixels = jnp.pad(
            pixels, [(0, 0), (0, -height % PATCH), (0, -width % PATCH), (0, 0)]
        )
        rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
        patches = pixels.reshape(batch, rows, PATCH, columns, PATCH, 3)
        total = jnp.sum(pixels, axis=(1, 2)) / jnp.prod(image_size, axis=1)[:, None]
        queries = jnp.broadcast_to(self.to_logits.T[None], (batch, self.num_classes, 3))
        grid = patches.mean(axis=(2, 4))
        return LabelPrediction(
            total @ self.to_scores, queries, FeatureMap(grid, -(-image_size // PATCH))
        )

    def grid_length(self, length):
        return -(-length // PATCH)

    def classify(self, labels, selection):
        queries = jnp.take_along_axis(
            labels.class_queries, selection.class_ids[:, :, None], axis=1
        )
        logits = jnp.einsum("bhwd,bkd->bhwk", labels.elements.grid, queries)
        if selection.valid is not None:
            logits = jnp.where(selection.valid[:, None, None], logits, -100.0)
        return Output(labels.scores, selection, logits, None)


def fake_engine(model, settings):
    """An `Engine` with a model that is none."""
    engine = object.__new__(Engine)
    unwrapped = getattr(Engine.__init__, "__wrapped__", Engine.__init__)
    unwrapped(engine, model, {}, settings)
    return engine


def make_settings(**changes):
    config = segmenter_config()
    with config.unlocked():
        config.eval.update({"window": (16, 16), "stride": (12, 12), "batch_size": 4})
        config.eval.base_size = (0, 0)
        config.eval.update(changes)
    return config.eval


def make_image(height, width, seed=0):
    """Blobs, so that windows differ in colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 5 // width
    noise = rng.integers(-20, 20, (height, width, 3))
    return np.clip(coarse[rows][:, columns] + noise, 0, 255).astype(np.uint8)
