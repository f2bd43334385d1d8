"""Quality of the multi-label scores: class-wise mAP and label-ranking AP."""

import flax
import jax
import numpy as np
from clu import metrics

from mlseg_jax.typing import Array, Bool, Float, UInt8

AnyArray = Array | np.ndarray

# Bounds on the temporary memory of the two sorts.
CLASSES_PER_BLOCK = 64  # a multiple of 8: blocks begin at whole bytes of presence
EXAMPLES_PER_BLOCK = 256


@flax.struct.dataclass
class LabelScores(metrics.Metric):
    """All label scores of a data set, on the host.

    This is the one metric that has to keep every score: average precision ranks all
    examples of a class against each other, and no sum over batches can do that. It
    keeps C float32 (float16 would change ranks) and C bits per example: 20,000 images
    and 1,284 classes take 106 MB, the sorts a few MB more.

    Attributes:
      scores: per batch float32 [B C]; logits or probabilities, only the order counts.
      presence: per batch uint8 [B ceil(C/8)], the present classes as packed bits.

    Source: ``reference/method.md`` section 13.3 (Query2Label's VOC mAP; RankSeg's
    ``img_average_precision``).
    """

    # As for MeanIoU: leaves may be anything while JAX transforms the state.
    __no_type_check__ = True

    scores: tuple[Float[np.ndarray, "_ C"], ...]
    presence: tuple[UInt8[np.ndarray, "_ bytes"], ...]

    @classmethod
    def empty(cls, num_classes: int) -> "LabelScores":
        """No examples yet."""
        bits = np.packbits(np.zeros((0, num_classes), bool), axis=1)
        return cls((np.zeros((0, num_classes), np.float32),), (bits,))

    @classmethod
    def from_batch(
        cls,
        scores: Float[AnyArray, "B C"],
        presence: Bool[AnyArray, "B C"],
        example_mask: Bool[AnyArray, "B"],
    ) -> "LabelScores":
        """Takes a batch from device or host (so not inside ``jit``), without padding.

        Args:
          scores: higher means more likely present; -inf and inf are fine.
          presence: whether the class has a pixel in the example.
          example_mask: False for padded examples, which are dropped.

        Raises:
          ValueError: if a score of an unmasked example is NaN.
        """
        scores, presence, keep = jax.device_get((scores, presence, example_mask))
        scores = scores[keep].astype(np.float32, copy=False)
        if np.isnan(scores).any():
            raise ValueError(
                "A label score is NaN and cannot be ranked: check the model's weights "
                "and the loss, training may have diverged."
            )
        return cls((scores,), (np.packbits(presence[keep], axis=1),))

    def to_host(self) -> "LabelScores":
        """Itself: the scores are on the host already."""
        return self

    def merge(self, other: "LabelScores") -> "LabelScores":
        """Puts the examples of ``other`` behind these; copies no scores.

        Raises:
          ValueError: if the two have different numbers of classes.
        """
        if self.num_classes != other.num_classes:
            raise ValueError(
                f"Cannot merge label scores of {self.num_classes} and "
                f"{other.num_classes} classes: use the same data set for both."
            )
        return LabelScores(self.scores + other.scores, self.presence + other.presence)

    @property
    def num_classes(self) -> int:
        """C, known even without examples."""
        return self.scores[0].shape[1]

    def per_class_average_precision(self) -> Float[np.ndarray, "C"]:
        """VOC average precision per class, float64; NaN for a class never present.

        The area under the interpolated precision-recall curve, at all points. Equal
        scores are ranked in the order of the examples, earlier first; Query2Label's
        sort leaves that open. So a class with all scores equal depends on that order.
        """
        average_precision = np.full(self.num_classes, np.nan)
        for start in range(0, self.num_classes, CLASSES_PER_BLOCK):
            stop = min(start + CLASSES_PER_BLOCK, self.num_classes)
            scores = np.concatenate([s[:, start:stop] for s in self.scores])
            part = slice(start // 8, -(-stop // 8))
            bits = np.concatenate([b[:, part] for b in self.presence])
            present = np.unpackbits(bits, axis=1, count=stop - start).astype(bool)
            present = np.ascontiguousarray(present.T)
            order = np.argsort(np.ascontiguousarray(-scores.T), axis=1, kind="stable")
            for offset in np.flatnonzero(present.any(axis=1)):
                ranks = 1 + np.flatnonzero(present[offset, order[offset]])
                # Between two positives precision only falls, so its maximum to the
                # right is reached at a positive; each positive adds equal recall.
                precision = np.arange(1, len(ranks) + 1) / ranks
                envelope = np.maximum.accumulate(precision[::-1])
                average_precision[start + offset] = envelope.mean()
        return average_precision

    def label_ranking_average_precision(self) -> float:
        """Mean over images of the mean over present classes of i / rank_i.

        The i-th best ranked present class has rank_i among all C classes. Equal scores
        are ranked by class id, lower first, as label selection does. Images with no
        present class are left out; NaN where there is no other image.
        """
        total, num_images = 0.0, 0
        for all_scores, all_bits in zip(self.scores, self.presence, strict=True):
            for start in range(0, len(all_scores), EXAMPLES_PER_BLOCK):
                rows = slice(start, start + EXAMPLES_PER_BLOCK)
                scores = all_scores[rows]
                present = np.unpackbits(all_bits[rows], axis=1, count=self.num_classes)
                order = np.argsort(-scores, axis=1, kind="stable")
                hits = np.take_along_axis(present, order, axis=1).astype(np.int64)
                ranks = np.arange(1, self.num_classes + 1)[None]
                sums = (hits * np.cumsum(hits, axis=1) / ranks).sum(axis=1)
                num_present = hits.sum(axis=1)
                total += float((sums / np.maximum(num_present, 1)).sum())
                num_images += int((num_present > 0).sum())
        return total / num_images if num_images else float("nan")

    def compute(self) -> dict[str, float]:
        """``mAP`` and ``label_ranking_AP`` as fractions of one.

        ``mAP`` is the mean over classes present in at least one example. Both are NaN
        without a present class.
        """
        per_class = self.per_class_average_precision()
        known = per_class[~np.isnan(per_class)]
        return {
            "mAP": float(known.mean()) if known.size else float("nan"),
            "label_ranking_AP": self.label_ranking_average_precision(),
        }
