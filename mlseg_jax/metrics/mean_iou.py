"""Mean IoU and where the wrong pixels come from, as counts per class.

The counting and host arithmetic that metrics share is here too. Device arrays are
int32 and hold one batch; a data set has more pixels than int32 can count, so sums over
batches are made on the host: ``total = total.merge(batch.to_host())``.
"""

from typing import TypeVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

from mlseg_jax.typing import IGNORE, Array, Bool, Float, Int

AnyArray = Array | np.ndarray
State = TypeVar("State", bound=metrics.Metric)


def count_classes(ids: Int[Array, "*shape"], num_classes: int) -> Int[Array, "C"]:
    """How often each of 0..C-1 occurs; everything else (``IGNORE``) is dropped."""
    ids = ids.astype(jnp.int32)
    # A negative index would wrap around; C is out of bounds and therefore dropped.
    ids = jnp.where(ids >= 0, ids, num_classes)
    return jnp.zeros(num_classes, jnp.int32).at[ids].add(1, mode="drop")


def state_to_host(state: State) -> State:
    """Copies a state of counts and sums to the host as int64 and float64."""

    def widen(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(np.int64 if leaf.dtype.kind in "iu" else np.float64)

    return jax.tree.map(widen, jax.device_get(state))


def add_states(first: State, second: State) -> State:
    """Adds two states of counts and sums, field by field.

    Two device states stay on the device, in int32, and can be added inside ``jit``
    (strips of one image, say). As soon as one is on the host, the sum is too.

    Raises:
      ValueError: if the states have different numbers of classes or of labels.
    """
    leaves = jax.tree.leaves((first, second))
    if any(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves):
        first, second = state_to_host(first), state_to_host(second)
    shapes = [[x.shape for x in jax.tree.leaves(state)] for state in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Cannot merge two {type(first).__name__} of different sizes, {shapes[0]} "
            f"and {shapes[1]}: make both for the same classes and number of labels."
        )

    def add(x, y):
        # NumPy turns a sum of 0-d arrays into a scalar; keep it an array.
        return np.asarray(x + y) if isinstance(x, np.ndarray) else x + y

    return jax.tree.map(add, first, second)


def mean_where(values: Float[np.ndarray, "C"], where: Bool[np.ndarray, "C"]) -> float:
    """Mean of the values chosen by ``where``; NaN where there are none."""
    return float(values[where].mean()) if where.any() else float("nan")


def divide(numerator: Int[np.ndarray, "C"], denominator: Int[np.ndarray, "C"]):
    """Float64 [C] quotients, NaN where the denominator is 0."""
    nan = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


@flax.struct.dataclass
class MeanIoU(metrics.Metric):
    """Pixel counts per class: [C] vectors, never a [C C] confusion matrix.

    Attributes:
      intersection: pixels of a class that were predicted as it.
      predicted: labelled pixels predicted as the class.
      labelled: pixels of the class.
      wrong_unselected: wrong pixels whose true class was not among the selected labels,
        so that no pixel classifier could have found it.
      wrong_selected: wrong pixels whose true class was selected but lost to another.
      wrong_absent: wrong pixels that were given a class which is nowhere in the image.

    Source: ``reference/method.md`` section 13.2 (mmseg ``pre_eval``; detectron2 for
    ``mIoU_present``).
    """

    # Transformations (eval_shape, tree.map) also build states of what is no array, so
    # the fields' shapes are not checked when a state is made; those of methods are.
    __no_type_check__ = True

    intersection: Int[AnyArray, "C"]
    predicted: Int[AnyArray, "C"]
    labelled: Int[AnyArray, "C"]
    wrong_unselected: Int[AnyArray, ""]
    wrong_selected: Int[AnyArray, ""]
    wrong_absent: Int[AnyArray, ""]

    @classmethod
    def empty(cls, num_classes: int) -> "MeanIoU":
        """No pixels yet, on the host."""
        counts = [np.zeros(num_classes, np.int64) for _ in range(3)]
        return cls(*counts, *(np.zeros((), np.int64) for _ in range(3)))

    @classmethod
    def from_maps(
        cls,
        prediction: Int[Array, "*shape"],
        label_map: Int[Array, "*shape"],
        label_selected: Bool[Array, "*shape"],
        num_classes: int,
        prediction_present: Bool[Array, "*shape"] | None = None,
    ) -> "MeanIoU":
        """Counts maps of any shape: a batch, an image, a strip of rows, no pixels.

        Args:
          prediction: class ids (not ranks). Anything outside 0..C-1 is no class: on a
            labelled pixel it is wrong, and it adds to no class's ``predicted``.
          label_map: class ids; pixels outside 0..C-1, such as ``IGNORE``, count
            nowhere, whatever was predicted there.
          label_selected: whether the pixel's true class was among the labels selected
            for its image; all True for a baseline. Only read on wrong pixels.
          num_classes: C, static under ``jit``.
          prediction_present: whether the predicted class is anywhere in the image. Only
            read on wrong pixels; without it none counts as absent.
        """
        known = (label_map >= 0) & (label_map < num_classes)
        right = known & (prediction == label_map)
        wrong = known & (prediction != label_map)
        absent = False if prediction_present is None else ~prediction_present
        return cls(
            intersection=count_classes(
                jnp.where(right, label_map, IGNORE), num_classes
            ),
            predicted=count_classes(jnp.where(known, prediction, IGNORE), num_classes),
            labelled=count_classes(label_map, num_classes),
            wrong_unselected=jnp.sum(wrong & ~label_selected, dtype=jnp.int32),
            wrong_selected=jnp.sum(wrong & label_selected, dtype=jnp.int32),
            wrong_absent=jnp.sum(wrong & absent, dtype=jnp.int32),
        )

    def to_host(self) -> "MeanIoU":
        """The same counts as NumPy int64."""
        return state_to_host(self)

    def merge(self, other: "MeanIoU") -> "MeanIoU":
        """Sums the counts; see ``add_states`` for host and device."""
        return add_states(self, other)

    def per_class_iou(self) -> Float[np.ndarray, "C"]:
        """IoU per class, float64; NaN for a class neither labelled nor predicted."""
        counts = self.to_host()
        union = counts.predicted + counts.labelled - counts.intersection
        return divide(counts.intersection, union)

    def compute(self) -> dict[str, float]:
        """Scores as fractions of one.

        Returns:
          * ``mIoU``: mean over classes with a non-empty union, so that a class that was
            only predicted counts as 0 (mmseg).
          * ``mIoU_present``: mean over the classes present in the truth (detectron2).
          * ``pixel_accuracy``; ``mean_class_accuracy`` over classes in the truth.
          * ``wrong_pixels``: share of the labelled pixels.
          * ``wrong_not_selected``, ``wrong_confused``: shares of the wrong pixels whose
            true class was not selected, or was selected and lost. Both 0 where nothing
            is wrong, otherwise they add up to 1. ``wrong_absent``: the share of the
            wrong pixels whose predicted class is not in the image.

          Without a labelled pixel everything but the last three is NaN.
        """
        counts = self.to_host()
        iou = self.per_class_iou()
        present = counts.labelled > 0
        num_pixels = int(counts.labelled.sum())
        num_unselected = int(counts.wrong_unselected)
        num_wrong = num_unselected + int(counts.wrong_selected)
        right = int(counts.intersection.sum())
        return {
            "mIoU": mean_where(iou, ~np.isnan(iou)),
            "mIoU_present": mean_where(iou, present),
            "pixel_accuracy": right / num_pixels if num_pixels else float("nan"),
            "mean_class_accuracy": mean_where(
                divide(counts.intersection, counts.labelled), present
            ),
            "wrong_pixels": num_wrong / num_pixels if num_pixels else float("nan"),
            "wrong_not_selected": num_unselected / max(num_wrong, 1),
            "wrong_confused": (num_wrong - num_unselected) / max(num_wrong, 1),
            "wrong_absent": int(counts.wrong_absent) / max(num_wrong, 1),
        }
