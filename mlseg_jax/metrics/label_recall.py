"""How much of an image the first k labels of a selection cover, for every k."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from mlseg_jax.metrics.mean_iou import add_states, count_classes, state_to_host
from mlseg_jax.typing import IGNORE, Array, Bool, Float, Int

AnyArray = Array | np.ndarray

MAX_CLASSES_PER_IMAGE = 256
"""Last bin of ``classes_per_image``, which also holds the images with more classes."""


def label_histogram(
    label_map: Int[Array, "B H W"], num_classes: int
) -> Int[Array, "B C"]:
    """Pixels of each class in each example; int32, ``IGNORE`` dropped.

    ``label_histogram(...) > 0`` is the presence of classes that the multi-label loss
    and ``LabelScores`` take. An example with nothing labelled has a row of zeros.
    """
    count = functools.partial(count_classes, num_classes=num_classes)
    return jax.vmap(count)(label_map)


@flax.struct.dataclass
class LabelRecall(metrics.Metric):
    """Sums over images, for selections of the first k = 1..K labels.

    With S the first k selected labels and G the classes present in an image: pixel
    recall is the share of labelled pixels whose class is in S, image recall is
    |S∩G| / |G|, image precision |S∩G| / k. All three are means over images. An image
    with nothing labelled has recalls 1 and precision 0.

    Attributes:
      pixel_recall: sum of the images' pixel recalls; float32 of a batch on the device,
        float64 on the host.
      image_recall: sum of the images' image recalls, likewise.
      hits: sum of |S∩G|.
      num_images: images that were not padding.
      classes_per_image: number of images with n = 0..256 present classes, 256 standing
        for 256 and more (paper, Figure 2).

    Source: ``reference/method.md`` section 13.4. The release drops unlabelled images
    from its recalls unless the whole batch is unlabelled, so its means depend on the
    batch size; here each such image counts, as there with one image per batch.
    """

    # As for MeanIoU: leaves may be anything while JAX transforms the state.
    __no_type_check__ = True

    pixel_recall: Float[AnyArray, "K"]
    image_recall: Float[AnyArray, "K"]
    hits: Int[AnyArray, "K"]
    num_images: Int[AnyArray, ""]
    classes_per_image: Int[AnyArray, "bins"]

    @classmethod
    def empty(cls, max_k: int) -> "LabelRecall":
        """No images yet, on the host; ``max_k`` is the K of the batches to come."""
        return cls(
            pixel_recall=np.zeros(max_k, np.float64),
            image_recall=np.zeros(max_k, np.float64),
            hits=np.zeros(max_k, np.int64),
            num_images=np.zeros((), np.int64),
            classes_per_image=np.zeros(MAX_CLASSES_PER_IMAGE + 1, np.int64),
        )

    @classmethod
    def from_batch(
        cls,
        class_ids: Int[AnyArray, "B K"],
        valid: Bool[AnyArray, "B K"] | None,
        histogram: Int[AnyArray, "B C"],
        example_mask: Bool[AnyArray, "B"],
    ) -> "LabelRecall":
        """Looks the selected labels up in the histogram; works inside ``jit``.

        Args:
          class_ids: selected labels by falling score, each class at most once among
            the valid ones.
          valid: False where a rank holds no label; it finds nothing, but still counts
            in the k that precision is divided by. None means all valid.
          histogram: pixels of each class, from ``label_histogram``.
          example_mask: False for padded examples, which count nowhere.
        """
        pixels = jnp.take_along_axis(histogram, class_ids, axis=1, mode="clip")
        if valid is not None:
            pixels = jnp.where(valid, pixels, 0)
        num_labelled = histogram.sum(axis=1, keepdims=True, dtype=jnp.int32)
        num_present = (histogram > 0).sum(axis=1, keepdims=True, dtype=jnp.int32)
        hits = jnp.cumsum(pixels > 0, axis=1, dtype=jnp.int32)

        def recall(found: Int[AnyArray, "B K"], total: Int[AnyArray, "B 1"]):
            share = found.astype(jnp.float32) / jnp.maximum(total, 1)
            return jnp.where(total > 0, share, 1.0)

        keep = example_mask[:, None]
        covered = recall(jnp.cumsum(pixels, axis=1, dtype=jnp.int32), num_labelled)
        found = recall(hits, num_present)
        bins = jnp.where(keep, jnp.minimum(num_present, MAX_CLASSES_PER_IMAGE), IGNORE)
        return cls(
            pixel_recall=jnp.sum(covered, axis=0, where=keep),
            image_recall=jnp.sum(found, axis=0, where=keep),
            hits=jnp.sum(hits, axis=0, where=keep, dtype=jnp.int32),
            num_images=jnp.sum(example_mask, dtype=jnp.int32),
            classes_per_image=count_classes(bins, MAX_CLASSES_PER_IMAGE + 1),
        )

    def to_host(self) -> "LabelRecall":
        """The same sums as NumPy float64 and int64."""
        return state_to_host(self)

    def merge(self, other: "LabelRecall") -> "LabelRecall":
        """Adds the sums; see ``mean_iou.add_states`` for host and device."""
        return add_states(self, other)

    def curve(self) -> dict[str, AnyArray]:
        """Means over images for every k, each an array [K]; NaN without any image.

        Returns:
          ``k`` (1..K), ``pixel_recall``, ``image_recall`` and ``image_precision``.
        """
        sums = self.to_host()
        k = np.arange(1, len(sums.hits) + 1)
        num_images = float(sums.num_images) or float("nan")
        return {
            "k": k,
            "pixel_recall": sums.pixel_recall / num_images,
            "image_recall": sums.image_recall / num_images,
            "image_precision": sums.hits / k / num_images,
        }

    def compute(self) -> dict[str, float]:
        """The curve's last point, the selection as it is; NaN without any image."""
        curve = self.curve()
        names = ("pixel_recall", "image_recall", "image_precision")
        return {f"{name}_at_k": float(curve[name][-1]) for name in names}
