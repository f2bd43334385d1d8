"""Label selection: which labels a picture is segmented into, and the maps to and from
it.

MLSeg asks first which of the C complete labels are in the image, keeps the K best, and
classifies pixels among those only (paper section 3.3, equations 2 and 3). Everything
that sorts, gathers, fills or renumbers for one picture's labels is here, as pure
functions. Beside it, selections of windows are united in ``inference/assemble.py``. The
model that uses them is ``models/mlseg.py``::

    selection = select_top_k(label_scores, k)                  # [B C] to K class ids
    class_queries = gather_classes(class_queries, selection)   # [B C D] to [B K D]
    targets = labels_to_ranks(label_map, selection)            # for the loss
    label_map = ranks_to_labels(logits.argmax(-1), selection)  # for the user

``class_ids`` number the complete labels 0..C-1. A ``rank`` is a position in a
selection, 0..K-1 by falling label score. Logits over ranks never become logits over
classes: ranks turn into class ids only once an argmax has been taken
(``ranks_to_labels``), so no array with C channels per pixel exists.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlseg_jax.distributed.sharding import on_each_device
from mlseg_jax.errors import UserError
from mlseg_jax.typing import IGNORE, Array, Bool, Float, Int, PRNGKeyArray

UNSELECTED_LOGIT = -100.0
"""Logit of a label that was not selected (the release's fill, method.md 4.1)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection:
    """The selected labels of each example, best first.

    Attributes:
      class_ids: class of each rank; distinct within an example where valid.
      valid: False for ranks that only pad to K; ``None`` when every rank is valid.
      num_classes: C.
    """

    # Leaves may be anything while JAX transforms it, and arrays of the host.
    __no_type_check__ = True

    class_ids: Int[Array, "B K"]
    valid: Bool[Array, "B K"] | None
    num_classes: int = dataclasses.field(metadata={"static": True})

    @property
    def num_ranks(self) -> int:
        return self.class_ids.shape[1]


Select = Callable[[Float[Array, "B C"]], Selection]
"""Makes a selection out of label scores: how the model is told what to select."""


# ---------------------------------------------------------------- four ways to select


def select_complete(label_scores: Float[Array, "B C"]) -> Selection:
    """All C classes in class order: the baseline, which selects nothing."""
    batch, num_classes = label_scores.shape
    class_ids = jnp.broadcast_to(jnp.arange(num_classes), (batch, num_classes))
    return Selection(class_ids, None, num_classes)


def select_top_k(
    label_scores: Float[Array, "B C"],
    k: int,
    *,
    minimum_score: float = 0.0,
    cumulative: float = 1.0,
) -> Selection:
    """The ``k`` best labels by falling score, ties to the lower class id (equation 2).

    An index operation: no gradient passes through it. ``k`` above C means C. Fewer than
    ``k`` may be valid (the paper's dynamic kappa, section 4.3): labels whose
    probability is below ``minimum_score`` are not, nor those after the best ones that
    together hold the share ``cumulative`` of all labels' probability. The best label
    always is.
    """
    num_classes = label_scores.shape[1]
    scores = jax.lax.stop_gradient(label_scores)
    best, class_ids = _top_k(scores, min(k, num_classes))
    valid = None
    if minimum_score > 0.0 or cumulative < 1.0:
        probabilities = jax.nn.sigmoid(best)
        before = jnp.cumsum(probabilities, axis=1) - probabilities
        total = jnp.sum(jax.nn.sigmoid(scores), axis=1, keepdims=True)
        valid = (probabilities >= minimum_score) & (before < cumulative * total)
        valid |= (jnp.arange(valid.shape[1]) == 0)[None]
    return Selection(class_ids, valid, num_classes)


def select_with_present(
    label_scores: Float[Array, "B C"],
    present: Bool[Array, "B C"],
    k: int,
    *,
    minimum_score: float = 0.0,
    cumulative: float = 1.0,
    rng: PRNGKeyArray | None = None,
) -> Selection:
    """The present labels and the best others, ``k`` in all, by falling score.

    Of the others those are valid that `select_top_k` takes; of the present all.
    For training: no pixel is without its label. Of more than ``k`` present labels the
    best ``k`` are kept. By their scores the labels that `select_top_k` missed are the
    last, and what is learned of the last ranks is that their labels are present, which
    is not so in evaluation; with ``rng`` they get random ranks. Not in the paper.
    """
    num_classes = label_scores.shape[1]
    scores = jax.lax.stop_gradient(label_scores)
    span = jnp.max(scores, 1, keepdims=True) - jnp.min(scores, 1, keepdims=True)
    # Above all others, in their own order.
    raised = jnp.where(present, scores + span + 1.0, scores)
    _, class_ids = _top_k(raised, min(k, num_classes))
    best = select_top_k(scores, k, minimum_score=minimum_score, cumulative=cumulative)
    valid = None
    if best.valid is not None:
        wanted = present | (rank_of_class(best) != IGNORE)
        valid = jnp.take_along_axis(wanted, class_ids, axis=1)
    selection = sort_by_score(Selection(class_ids, valid, num_classes), scores)
    if rng is None:
        return selection
    found = rank_of_class(best) != IGNORE
    missed = present & ~found
    missed = jnp.take_along_axis(missed, selection.class_ids, axis=1)
    return _scatter(selection, missed, rng)


def _scatter(
    selection: Selection, last: Bool[Array, "B K"], rng: PRNGKeyArray
) -> Selection:
    """The last of the valid ranks at random places among the others, all alike."""
    batch, count = last.shape
    valid = selection.valid
    end = count if valid is None else jnp.sum(valid, axis=1, keepdims=True)
    others = end - jnp.sum(last, axis=1, keepdims=True)
    places = jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32), (batch, count))
    drawn = (others + 1) * jax.random.uniform(rng, last.shape) - 1.0
    order = jnp.argsort(jnp.where(last, drawn, places), axis=1)
    class_ids = jnp.take_along_axis(selection.class_ids, order, axis=1)
    return dataclasses.replace(selection, class_ids=class_ids)


def add_noise(
    label_scores: Float[Array, "B C"], deviation: float, rng: PRNGKeyArray
) -> Float[Array, "B C"]:
    """Scores to select by in training, so that ranks vary from step to step.

    Gaussian noise of so many logits; no gradient passes. Not in the paper.
    """
    noise = jax.random.normal(rng, label_scores.shape, jnp.float32)
    return jax.lax.stop_gradient(label_scores) + deviation * noise


def select_oracle(histogram: Int[Array, "B C"], k: int) -> Selection:
    """The classes that are present, in class order (paper section 3.4, figure 3).

    ``histogram`` counts the pixels of each class. Of more than ``k`` present classes
    the largest are kept; with none present, class 0 is selected, as in the release.
    """
    num_classes = histogram.shape[1]
    counts, class_ids = _top_k(histogram, min(k, num_classes))
    valid = counts > 0
    valid = valid.at[:, 0].set(True)
    order = jnp.argsort(jnp.where(valid, class_ids, num_classes), axis=1)
    return Selection(
        jnp.take_along_axis(class_ids, order, axis=1),
        jnp.take_along_axis(valid, order, axis=1),
        num_classes,
    )


def sort_by_score(selection: Selection, label_scores: Float[Array, "B C"]) -> Selection:
    """The same labels by falling score, as a model knows them that has learned
    something of each rank.
    """
    scores = jnp.take_along_axis(label_scores, selection.class_ids, axis=1)
    valid = selection.valid
    if valid is not None:
        scores = jnp.where(valid, scores, -jnp.inf)
    order = jnp.argsort(-scores, axis=1)
    return Selection(
        jnp.take_along_axis(selection.class_ids, order, axis=1),
        None if valid is None else jnp.take_along_axis(valid, order, axis=1),
        selection.num_classes,
    )


def _top_k(scores: Array, k: int) -> tuple[Array, Array]:
    # Left to itself, XLA may sort the whole batch on every device.
    return on_each_device(lambda scores: tuple(jax.lax.top_k(scores, k)))(scores)


# ------------------------------------------------------------- what a selection is for


def gather_classes(
    class_queries: Float[Array, "B C D"] | Float[Array, "C D"], selection: Selection
) -> Float[Array, "B K D"]:
    """The rows of the selected labels, per example, in rank order.

    Queries without a batch axis are the same for every example.
    """
    if class_queries.ndim == 2:
        return class_queries[selection.class_ids]
    return jnp.take_along_axis(class_queries, selection.class_ids[:, :, None], axis=1)


def rank_of_class(selection: Selection) -> Int[Array, "B C"]:
    """The rank of every class; ``IGNORE`` for those that were not selected."""
    class_ids = selection.class_ids
    if selection.valid is not None:
        # Padding ranks write out of bounds, that is nowhere.
        class_ids = jnp.where(selection.valid, class_ids, selection.num_classes)
    table = jnp.full(selection.num_classes, IGNORE)
    ranks = jnp.arange(selection.num_ranks)
    return jax.vmap(lambda ids: table.at[ids].set(ranks, mode="drop"))(class_ids)


def labels_to_ranks(
    label_map: Int[Array, "B *shape"], selection: Selection
) -> Int[Array, "B *shape"]:
    """Renumbers pixels from classes to ranks for the loss (paper section 3.3).

    Pixels whose class was not selected become ``IGNORE``, like those without a class.
    """
    table = rank_of_class(selection)
    flat = label_map.reshape(label_map.shape[0], -1)
    ranks = jnp.take_along_axis(table, jnp.maximum(flat, 0), axis=1)
    return jnp.where(flat == IGNORE, IGNORE, ranks).reshape(label_map.shape)


def ranks_to_labels(
    rank_map: Int[Array, "B *shape"], selection: Selection
) -> Int[Array, "B *shape"]:
    """Renumbers an argmax over ranks to class ids."""
    flat = rank_map.reshape(rank_map.shape[0], -1)
    labels = jnp.take_along_axis(selection.class_ids, flat, axis=1)
    return labels.reshape(rank_map.shape)


def keep_best(logits: Float[Array, "B h w K"], count: int) -> Float[Array, "B h w K"]:
    """The best of each cell; the others get what unselected labels get.

    ESSNet's release does so before it upsamples, which changes the best label between
    cells that keep different ones (method.md 10.2).
    """
    # By index: a program may compute a logit twice, and not to the same last digit.
    _, best = jax.lax.top_k(logits, min(count, logits.shape[-1]))
    kept = jnp.zeros(logits.shape, bool)
    kept = jnp.put_along_axis(kept, best, True, axis=-1, inplace=False)
    return jnp.where(kept, logits, UNSELECTED_LOGIT)


# --------------------------------------------------------------------- configuration


@dataclasses.dataclass(frozen=True)
class SelectionPolicy:
    """How labels are selected, as a configuration says it; static under ``jax.jit``.

    `settings.keys` has the ranges of these values.

    Attributes:
      name: ``complete``, ``top_k``, ``oracle`` or ``given``.
      k: largest number of labels; above C it means C.
      minimum_score, cumulative: see `select_top_k`.
      by_score: whether ``given`` labels come in the order of the model's own scores.
      with_present: whether ``top_k`` has all present labels (`select_with_present`).
      scatter_present: whether those it missed by the scores get random ranks.
      noise: deviation of the noise that ``top_k`` selects under (`add_noise`).
    """

    name: str
    k: int
    minimum_score: float = 0.0
    cumulative: float = 1.0
    by_score: bool = False
    with_present: bool = False
    scatter_present: bool = False
    noise: float = 0.0

    def select(
        self,
        *,
        histogram: Int[Array, "B C"] | None = None,
        given: Selection | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Select:
        """The function from label scores to a selection, closed over what it needs.

        ``rng``: of noise and random ranks; without one there are none.
        """
        if self.name == "complete":
            return select_complete
        if self.name == "top_k":
            return functools.partial(self._select_top_k, histogram, rng)
        if self.name == "oracle":
            if histogram is None:
                raise UserError("The oracle selection needs the true label map.")
            return lambda label_scores: select_oracle(histogram, self.k)
        if given is None:
            raise UserError("The given selection needs the labels to select.")
        if self.by_score:
            return lambda label_scores: sort_by_score(given, label_scores)
        return lambda label_scores: given

    def given_by(self, label_scores: Float[Array, "B C"]) -> Selection:
        """What a classifier's scores give: as many labels as are to be selected."""
        return select_top_k(label_scores, self.k, **self._fewer)

    @property
    def _fewer(self) -> dict[str, float]:
        return dict(minimum_score=self.minimum_score, cumulative=self.cumulative)

    def _select_top_k(self, histogram, rng, label_scores) -> Selection:
        if self.noise > 0.0 and rng is not None:
            rng, noise_rng = jax.random.split(rng)
            label_scores = add_noise(label_scores, self.noise, noise_rng)
        if self.with_present:
            if histogram is None:
                raise UserError("Selecting present labels needs the true label map.")
            return select_with_present(
                label_scores,
                histogram > 0,
                self.k,
                rng=rng if self.scatter_present else None,
                **self._fewer,
            )
        return select_top_k(label_scores, self.k, **self._fewer)


SELECTIONS = ("complete", "top_k", "oracle", "given")
