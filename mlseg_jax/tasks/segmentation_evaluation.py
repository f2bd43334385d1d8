"""What evaluations of segmentation share: selections, label scores and recall."""

import abc
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.clips import Clips
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.label_selection import Selection, sort_by_score
from mlseg_jax.tasks.engines import oracle_policy
from mlseg_jax.tasks.evaluation import groups_by_clip, groups_by_shape
from mlseg_jax.tasks.selection_evaluation import AbstractSelectionEvaluation
from mlseg_jax.typing import Int

NUM_REPORT_EXAMPLES = 8
"""Pictures that are kept whole for the report."""


class AbstractSegmentationEvaluation(AbstractSelectionEvaluation):
    """Segments pictures, with the oracle's labels too where asked for, and counts what
    of the labels was found.

    Subclasses count what was found of pixels or segments.
    """

    def __init__(self, config: ml_collections.ConfigDict, info: DatasetInfo, **more):
        super().__init__(config, info, **more)
        scope = config.eval.selection_scope
        self.per_clip = scope == "per_clip" and self.policy.name == "top_k"

    @abc.abstractmethod
    def histogram(self, examples: list[dict]) -> Int[np.ndarray, "N C"]:
        """Pixels of each class that is to be found in each picture."""

    @abc.abstractmethod
    def seen_labels(self, examples: list[dict]) -> Int[np.ndarray, "N views C"]:
        """The same in each view of the pictures: what the oracle selects there."""

    @abc.abstractmethod
    def count(
        self, segmented: Segmented | SegmentedRegions, examples: list[dict]
    ) -> None:
        """Counts what was found in some pictures of one size."""

    @abc.abstractmethod
    def count_oracle(
        self, segmented: Segmented | SegmentedRegions, examples: list[dict]
    ) -> None:
        """The same where the true labels were selected."""

    def groups(self, engine: Engine, examples: Iterator[dict]) -> Iterator[list[dict]]:
        if self.per_clip:
            return groups_by_clip(examples, self.config.eval.clip_length)
        return groups_by_shape(examples, engine.batch_sizes[0])

    def add(self, engine: Engine, examples: list[dict]) -> None:
        """Segments and scores examples whose pictures have one size."""
        histogram = self.histogram(examples)
        oracle = given = None
        if self.oracle_policy or self.policy.name == "oracle":
            seen = self.seen_labels(examples)
            oracle = self.oracle_selection(seen.reshape(-1, self.info.num_classes))
        policies = [(self.policy, None)]
        if self.policy.name == "oracle":
            policies = [(oracle_policy(self.config), oracle)]
            given = self.oracle_selection(seen.max(axis=1))
        elif self.policy.name == "given":
            scores = np.stack([example["given"] for example in examples])
            given = jax.device_get(self.policy.given_by(jnp.asarray(scores)))
            policies = [(self.policy, given)]
        if self.oracle_policy:
            policies.append((self.oracle_policy, oracle))
        images = [example["image"] for example in examples]
        scope = Clips(self.policy.k, self.config.eval) if self.per_clip else None
        results = engine.segment(images, policies, scope=scope)
        for chosen, segmented in _with_rows(results[0]):
            self.count(segmented, examples[chosen])
            own = given and jax.tree.map(lambda x, rows=chosen: x[rows], given)
            if self.per_clip:
                own = _of_clip(segmented)
            self.add_labels(segmented.scores, histogram[chosen], own)
        if self.oracle_policy:
            for chosen, segmented in _with_rows(results[1]):
                self.count_oracle(segmented, examples[chosen])
        self.num_examples += len(examples)


def _of_clip(segmented: Segmented | SegmentedRegions) -> Selection:
    """The clip's labels, in the order of each frame's own scores."""
    chosen = jax.tree.map(
        lambda x: jnp.asarray(x)[: segmented.count], segmented.selection
    )
    return jax.device_get(sort_by_score(chosen, jnp.asarray(segmented.scores)))


def _with_rows(results: list) -> Iterator[tuple[slice, Segmented | SegmentedRegions]]:
    """Each result with the examples that it is of."""
    start = 0
    for segmented in results:
        yield slice(start, start + segmented.count), segmented
        start += segmented.count
