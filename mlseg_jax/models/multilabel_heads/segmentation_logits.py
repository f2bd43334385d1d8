"""Label scores out of the pixel classifier itself (paper, end of section 4.3)."""

import jax.numpy as jnp

from mlseg_jax.models.interfaces import (
    AbstractDecoder,
    AbstractMultiLabelHead,
    Embeddings,
    LabelPrediction,
)
from mlseg_jax.models.macs import Macs, norm
from mlseg_jax.models.rank_adaptive import RankNorm
from mlseg_jax.typing import Array, Float, PRNGKeyArray


class SegmentationLogitsHead(AbstractMultiLabelHead):
    """Classifies every cell (or query) among all C classes; a label's score is its best
    cell's.

    What the paper says gains nothing (mAP 58.55 where a head of its own has 62.52), and
    it costs the baseline's work before anything is selected. Which cell counts is not
    written; the maximum is our reading.
    """

    def __init__(self, decoder: AbstractDecoder, *, num_classes: int):
        self.decoder = decoder
        self.class_norm = RankNorm("affine", num_classes)

    def __call__(
        self,
        embeddings: Embeddings,
        class_embeddings: Float[Array, "C D"] | Float[Array, "B C D"],
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        elements = embeddings.elements
        shape = (embeddings.image.grid.shape[0], *class_embeddings.shape[-2:])
        classes = jnp.broadcast_to(class_embeddings, shape)
        scores = self.decoder.classify(elements, classes, None, rng)
        # Of regions only the last prediction counts, and no-object is no label.
        if self.decoder.num_queries:
            scores = scores[:, -1:, :, : shape[1]]
        logits = self.class_norm(scores)
        if elements.mask is not None:
            logits = jnp.where(elements.mask[..., None], logits, -jnp.inf)
        cells = logits.reshape(logits.shape[0], -1, logits.shape[-1])
        # Not jnp.max: its gradient looks for the cells that equal the maximum, and a
        # compiler that makes them once more, rounded otherwise, finds none: 0 / 0.
        best = jnp.argmax(cells, axis=1, keepdims=True)
        scores = jnp.take_along_axis(cells, best, axis=1)[:, 0]
        return LabelPrediction(scores, class_embeddings, elements)

    def macs(self, grid: tuple[int, int], num_classes: int) -> Macs:
        height, width = grid
        # The embedding of the pixels is counted where it is made.
        return self.decoder.classify_macs(grid, num_classes) + norm(
            height, width, num_classes
        )
