"""MLSeg (RankSeg): multi-label prediction first, then pixels among the selected labels.

The paper is five statements, which carry these numbers in `MLSeg`:

1. features of the image,
2. embeddings of its pixels, or of its regions,
3. label scores and class queries for all C classes (equation 1),
4. a selection: the K labels worth classifying among (equation 2),
5. logits of every pixel or region over those K ranks (equation 3).

``__call__`` is all of them, as in training. Evaluation takes them apart: ``encode`` (1
to 3) says which labels there are, the caller selects, ``classify`` (5) may be asked
again with another selection.

Which backbone, decoder and multi-label head these are is configuration (`build`), and
so is the selection (`label_selection`): with the complete one, in class order, this is
the baseline. Nothing has C channels per pixel: C is only the length of the scores and
the number of class queries.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlseg_jax.label_selection import (
    Select,
    Selection,
    gather_classes,
    keep_best,
)
from mlseg_jax.models.decoders.auxiliary import FCNHead
from mlseg_jax.models.interfaces import (
    AbstractBackbone,
    AbstractDecoder,
    AbstractMultiLabelHead,
    FeatureMap,
    LabelPrediction,
    Output,
    RegionOutput,
    inside_mask,
    make_output,
)
from mlseg_jax.models.layers.clips import to_clip, to_frames
from mlseg_jax.models.layers.transformer import linear_init, split_rng, torch_uniform
from mlseg_jax.models.macs import Macs, in_full, norm
from mlseg_jax.models.presence_prior import PresencePrior
from mlseg_jax.models.rank_adaptive import RankNorm
from mlseg_jax.typing import Array, Float, Int, Length, PRNGKeyArray, UInt8

CLASS_INITIALS = {
    "normal": lambda embed_dim: linear_init,
    "zeros": lambda embed_dim: nnx.initializers.zeros,
    "uniform": torch_uniform,
}
"""First values of class embeddings: as of tokens, none, as of PyTorch's linear layer.
"""


class MLSeg(nnx.Module):
    """A backbone, a decoder, a multi-label head and one embedding per class."""

    def __init__(
        self,
        backbone: AbstractBackbone,
        decoder: AbstractDecoder,
        multilabel_head: AbstractMultiLabelHead,
        rank_norm: RankNorm,
        *,
        num_classes: int,
        scales_of_classes: bool = False,
        classes_in_backbone: bool = False,
        initial_classes: str = "normal",
        num_nearest: int | None = None,
        last_prediction_only: bool = False,
        presence_prior: PresencePrior | None = None,
        auxiliary_head: FCNHead | None = None,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.decoder = decoder
        self.multilabel_head = multilabel_head
        self.rank_norm = rank_norm
        self.presence_prior = presence_prior
        self.auxiliary_head = auxiliary_head
        # One table serves the multi-label head and the classifier. The paper's OCE
        # sends it through the backbone's last block first; as released it starts at
        # zero where the backbone starts from a checkpoint (method.md 6).
        initial = CLASS_INITIALS[initial_classes](decoder.embed_dim)
        self.class_embeddings = nnx.Param(
            initial(rngs.params(), (num_classes, decoder.embed_dim))
        )
        # Learned with all classes in class order, as the baseline's are.
        self.scales_of_classes = scales_of_classes
        self.classes_in_backbone = classes_in_backbone
        # ESSNet predicts among as many classes in each cell, those that score best.
        self.num_nearest = num_nearest
        # Of regions earlier predictions are among all K labels (method.md 7.3).
        self.last_prediction_only = last_prediction_only
        biases = initial(rngs.params(), (num_classes, 1))
        self.class_biases = nnx.Param(biases) if decoder.class_bias else None
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std

    def __call__(
        self,
        images: UInt8[Array, "B *T H W 3"] | Float[Array, "B *T H W 3"] | None,
        select: Select,
        *,
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
        progress: Float[Array, ""] | None = None,
        features: Float[Array, "B h w D"] | None = None,
    ) -> Output | RegionOutput:
        """Label scores, the selection that ``select`` makes of them, logits over ranks.

        ``image_size`` is the real height and width where images only fill the upper
        left of a padded canvas. ``rng`` switches dropout on (training); ``progress`` is
        the share of it that is over. With an axis T they are frames of clips: there is
        one selection for each clip. ``features``: what the backbone makes of the
        images, its maps side by side, where known; the images may then be None.
        """
        encode_rng, classify_rng, auxiliary_rng = split_rng(rng, 3)
        if features is None:
            maps, labels = self._encode(images, image_size, encode_rng, progress)
        else:
            maps = self._as_maps(features)
            classes = self.class_embeddings[...]
            labels = self._labels(maps, classes, encode_rng, progress)
        selection = select(labels.scores)  # 4.
        output = self.classify(labels, selection, rng=classify_rng)
        if self.auxiliary_head is None or rng is None:
            return output
        auxiliary = self.auxiliary_head(maps, auxiliary_rng)
        return dataclasses.replace(output, auxiliary=auxiliary)

    def encode(
        self,
        images: UInt8[Array, "B *T H W 3"] | Float[Array, "B *T H W 3"],
        *,
        image_size: Int[Array, "B 2"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> LabelPrediction:
        """Which labels are in the image? Nothing here depends on the selection."""
        return self._encode(images, image_size, rng)[1]

    def _encode(
        self, images, image_size, rng, progress=None
    ) -> tuple[tuple[FeatureMap, ...], LabelPrediction]:
        backbone_rng, _, _ = split_rng(rng, 3)
        num_frames = images.shape[1] if images.ndim == 5 else None
        frames = to_frames(FeatureMap(images, image_size))
        images, image_size = frames.grid, frames.grid_size
        pixels = normalise(images, image_size, self.pixel_mean, self.pixel_std)
        classes = self.class_embeddings[...]
        # 1. The class embeddings may go through the last block with the image (OCE).
        if self.classes_in_backbone:
            features, classes = self.backbone.with_classes(
                pixels, classes, image_size, backbone_rng
            )
        else:
            features = self.backbone(pixels, image_size, backbone_rng)
        features = tuple(to_clip(each, num_frames) for each in features)
        return features, self._labels(features, classes, rng, progress)

    def _labels(self, features, classes, rng, progress=None) -> LabelPrediction:
        _, decoder_rng, head_rng = split_rng(rng, 3)
        more = {"progress": progress} if self.decoder.anneals else {}
        embeddings = self.decoder.embed(features, decoder_rng, **more)  # 2.
        return self.multilabel_head(embeddings, classes, head_rng)  # 3.

    def backbone_features(
        self, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h w D"]:
        """The backbone's maps side by side, for one whose maps have one grid."""
        pixels = normalise(images, None, self.pixel_mean, self.pixel_std)
        maps = self.backbone(pixels, None, None)
        return jnp.concatenate([each.grid for each in maps], axis=-1)

    def _as_maps(self, features: Float[Array, "B h w D"]) -> tuple[FeatureMap, ...]:
        """`backbone_features` taken apart again."""
        dims = self.backbone.feature_dims
        features = features.astype(self.backbone.dtype)
        parts = jnp.split(features, np.cumsum(dims)[:-1].tolist(), axis=-1)
        return tuple(FeatureMap(part) for part in parts)

    def classify(
        self,
        labels: LabelPrediction,
        selection: Selection,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> Output | RegionOutput:
        """Which of the selected labels is each pixel or region?"""
        # 5. The decoder is handed the K rows of the selection, and knows of no other.
        class_queries = gather_classes(labels.class_queries, selection)
        scores = self.decoder.classify(
            labels.elements, class_queries, selection.valid, rng
        )
        if self.class_biases is not None:
            biases = gather_classes(self.class_biases[...], selection)[
                :, None, None, :, 0
            ]
            # No-object is the decoder's own, and so is its bias.
            own = scores.shape[-1] - selection.num_ranks
            biases = jnp.pad(biases, [(0, 0)] * 3 + [(0, own)])
            scores = scores + biases.astype(scores.dtype)
        class_ids = selection.class_ids if self.scales_of_classes else None
        logits = self.rank_norm(scores, selection.valid, class_ids)
        if self.last_prediction_only:
            earlier = self.rank_norm(scores[:, :-1], None, class_ids)
            logits = jnp.concatenate([earlier, logits[:, -1:]], axis=1)
        if self.presence_prior is not None:
            logits = self.presence_prior(logits, labels.scores, selection)
        if self.num_nearest is not None and rng is None:
            logits = keep_best(logits, self.num_nearest)
        return make_output(labels.scores, selection, logits, labels.elements)

    def grid_length(self, length: Length) -> Length:
        """Rows (or columns) of the logits or masks for so many pixels."""
        lengths = self.backbone.grid_lengths(length)
        return self.decoder.upscale * lengths[self.decoder.level]

    @property
    def any_canvas(self) -> bool:
        """Whether pictures may lie on larger canvases (`AbstractBackbone`)."""
        return self.backbone.any_canvas

    @property
    def multiple(self) -> int:
        """What sides of pictures are padded to a multiple of, as released, where
        regions are classified: that padding is a part of the picture (method.md 11.3).
        """
        return self.backbone.multiple if self.decoder.num_queries else 1

    def macs(
        self, size: tuple[int, int], num_ranks: int, num_frames: int = 0
    ) -> dict[str, Macs]:
        """Multiply-accumulates of one picture of so many rows and columns, by part; or
        of a clip of such frames.
        """
        heights, widths = map(self.backbone.grid_lengths, size)
        grids = tuple(zip(heights, widths, strict=True))
        decoder, head = self.decoder, self.multilabel_head
        num_classes = self.class_embeddings.shape[0]
        extra = (num_classes,) if self.classes_in_backbone else ()
        queries = (1, decoder.num_queries)
        scored = queries if decoder.num_queries else grids[decoder.level]
        seen = queries
        if decoder.image_level is not None:
            height, width = grids[decoder.image_level]
            seen = max(num_frames, 1) * height, width
        clip = {"num_frames": num_frames} if num_frames else {}
        parts = {
            "backbone": max(num_frames, 1) * self.backbone.macs(size, *extra),
            "decoder": decoder.embed_macs(grids, **clip)
            + decoder.classify_macs(scored, num_ranks)
            + (Macs() if self.rank_norm.kind == "none" else norm(*scored, num_ranks)),
            "multilabel_head": head.macs(seen, num_classes),
        }
        if decoder.num_queries:
            # Table 9 (`macs.in_full`); the decoder knows itself what was done there.
            counted = ("backbone", "multilabel_head")
            parts |= {name: in_full(parts[name]) for name in counted}
        return parts


def clear_padding(
    images: UInt8[Array, "B H W 3"],
    image_size: Int[Array, "B 2"],
    pixel_mean: tuple[float, ...],
) -> Float[Array, "B H W 3"]:
    """Pads crops with what is exactly 0 once normalised, as the release pads.

    To the model that padding is picture: in training nothing is masked.
    """
    mean = jnp.asarray(pixel_mean, jnp.float32).reshape(1, 1, 1, 3)
    inside = inside_mask(images.shape[1:3], image_size)[..., None]
    return jnp.where(inside, images.astype(jnp.float32), mean)


def normalise(
    images: Array,
    image_size: Int[Array, "B 2"] | None,
    pixel_mean: tuple[float, ...],
    pixel_std: tuple[float, ...],
) -> Float[Array, "B H W 3"]:
    """Subtracts the mean and divides by the deviation; the padding becomes zero."""
    mean = jnp.asarray(pixel_mean, jnp.float32).reshape(1, 1, 1, 3)
    std = jnp.asarray(pixel_std, jnp.float32).reshape(1, 1, 1, 3)
    pixels = (images.astype(jnp.float32) - mean) / std
    if image_size is None:
        return pixels
    inside = inside_mask(images.shape[1:3], image_size)
    return jnp.where(inside[..., None], pixels, 0.0)
