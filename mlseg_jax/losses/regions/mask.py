"""Losses and matching costs of regions: binary masks and classes of queries.

Everything is float32, for 12,544 additions in bfloat16 stall at 256 (masks.md 2.3).
``weights`` are of points or pixels, 0 for those in the void, or None.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mlseg_jax.errors import UserError
from mlseg_jax.typing import IGNORE, Array, Float, Int

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@dataclasses.dataclass(frozen=True)
class RegionLoss:
    """What is compared and how much it counts; static under ``jax.jit``.

    Attributes:
      mask: ``points`` (Mask2Former: binary cross-entropy and dice at uncertain points)
        or ``focal`` (MaskFormer: focal loss and dice at all pixels of the crop).
      class_weight, mask_weight, dice_weight: of the losses and of the matching costs.
      no_object_weight: of queries without a target in the class loss.
      num_points: points of a mask, and of the costs.
      oversample: candidates for each point.
      importance: share of the points that are the least certain candidates.
    """

    mask: str = "points"
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self):
        if self.mask not in ("points", "focal"):
            raise UserError(
                f"Unknown loss.regions.mask {self.mask!r}; choose points or focal."
            )
        possible = self.num_points >= 1 and self.oversample >= 1
        if not (possible and 0 <= self.importance <= 1):
            raise UserError(
                "A mask cannot be looked at with loss.regions.num_points="
                f"{self.num_points}, oversample={self.oversample} and importance="
                f"{self.importance}; set at least 1, at least 1, and 0 to 1."
            )

    @property
    def num_uncertain(self) -> int:
        return int(self.importance * self.num_points)

    @property
    def num_candidates(self) -> int:
        return int(self.oversample * self.num_points)


MASK2FORMER = RegionLoss()
MASKFORMER = RegionLoss("focal", class_weight=1.0, mask_weight=20.0, dice_weight=1.0)


# ----------------------------------------------------------------------------- losses


def binary_cross_entropy_at(
    logits: Float[Array, "*shape"], labels: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)), of labels that may be soft."""
    return jax.nn.softplus(logits) - logits * labels


def focal_at(
    logits: Float[Array, "*shape"], labels: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Lin et al. 2017: what is classified well already counts little."""
    probability = jax.nn.sigmoid(logits)
    right = probability * labels + (1.0 - probability) * (1.0 - labels)
    balance = FOCAL_ALPHA * labels + (1.0 - FOCAL_ALPHA) * (1.0 - labels)
    focus = (1.0 - right) ** FOCAL_GAMMA
    return balance * focus * binary_cross_entropy_at(logits, labels)


def mean_at(
    losses: Float[Array, "G P"], weights: Float[Array, "G P"] | None
) -> Float[Array, "G"]:
    """Mean over the points or pixels of each mask; 0 where all have weight 0."""
    if weights is None:
        return jnp.mean(losses, axis=1)
    total = jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    return jnp.sum(losses * weights, axis=1) / total


def dice(
    logits: Float[Array, "G P"],
    labels: Float[Array, "G P"],
    weights: Float[Array, "G P"] | None = None,
) -> Float[Array, "G"]:
    """1 - (2 Σ s t + 1) / (Σ s + Σ t + 1) with s = sigmoid(x)."""
    scores = jax.nn.sigmoid(logits)
    if weights is not None:
        scores, labels = scores * weights, labels * weights
    common = jnp.sum(scores * labels, axis=1)
    both = jnp.sum(scores, axis=1) + jnp.sum(labels, axis=1)
    return 1.0 - (2.0 * common + 1.0) / (both + 1.0)


# ------------------------------------------------------------------------------ costs


def pairwise_cross_entropy(
    logits: Float[Array, "N P"],
    labels: Float[Array, "M P"],
    weights: Float[Array, "P"] | None = None,
) -> Float[Array, "N M"]:
    """Mean of `binary_cross_entropy_at` of every query with every target."""
    losses, weighted, count = jax.nn.softplus(logits), logits, logits.shape[1]
    if weights is not None:
        losses, weighted = losses * weights[None], logits * weights[None]
        count = jnp.maximum(jnp.sum(weights), 1.0)
    return (jnp.sum(losses, axis=1, keepdims=True) - weighted @ labels.T) / count


def pairwise_focal(
    logits: Float[Array, "N P"],
    labels: Float[Array, "M P"],
    weights: Float[Array, "P"] | None = None,
) -> Float[Array, "N M"]:
    """Mean of `focal_at` of every query with every target (masks.md 3.3)."""
    probability, count = jax.nn.sigmoid(logits), logits.shape[1]
    positive = FOCAL_ALPHA * (1.0 - probability) ** FOCAL_GAMMA
    positive = positive * jax.nn.softplus(-logits)
    negative = (1.0 - FOCAL_ALPHA) * probability**FOCAL_GAMMA
    negative = negative * jax.nn.softplus(logits)
    if weights is not None:
        positive, negative = positive * weights[None], negative * weights[None]
        count = jnp.maximum(jnp.sum(weights), 1.0)
    outside = jnp.sum(negative, axis=1, keepdims=True)
    return (outside + (positive - negative) @ labels.T) / count


def pairwise_dice(
    logits: Float[Array, "N P"],
    labels: Float[Array, "M P"],
    weights: Float[Array, "P"] | None = None,
) -> Float[Array, "N M"]:
    """`dice` of every query with every target."""
    scores = jax.nn.sigmoid(logits)
    if weights is not None:
        scores, labels = scores * weights[None], labels * weights[None]
    common = scores @ labels.T
    both = jnp.sum(scores, axis=1)[:, None] + jnp.sum(labels, axis=1)[None]
    return 1.0 - (2.0 * common + 1.0) / (both + 1.0)


def class_cost(
    class_logits: Float[Array, "N K1"], ranks: Int[Array, "M"]
) -> Float[Array, "N M"]:
    """Minus the probability of each target's class; of ranks ``IGNORE`` any number."""
    probabilities = jax.nn.softmax(class_logits.astype(jnp.float32), axis=1)
    return -probabilities[:, jnp.maximum(ranks, 0)]


# ---------------------------------------------------------------------------- classes


def query_classes(
    queries: Int[Array, "B P M"], ranks: Int[Array, "B M"], num_queries: int, num_k: int
) -> Int[Array, "B P N"]:
    """The rank that each query shall find, ``num_k`` (no-object) without a target.

    ``queries`` are those of the targets, ``IGNORE`` where a target has none.
    """

    def fill(queries: Int[Array, "M"], ranks: Int[Array, "M"]) -> Int[Array, "N"]:
        nowhere = jnp.where(queries == IGNORE, num_queries, queries)
        return jnp.full(num_queries, num_k).at[nowhere].set(ranks, mode="drop")

    return jax.vmap(jax.vmap(fill, in_axes=(0, None)))(queries, ranks)


def class_cross_entropy(
    class_logits: Float[Array, "B P N K1"], classes: Int[Array, "B P N"]
) -> Float[Array, "B P N"]:
    """Softmax cross-entropy of queries over ranks and no-object, which is last."""
    log_probabilities = jax.nn.log_softmax(class_logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, classes[..., None], axis=-1)
    return -picked[..., 0]
