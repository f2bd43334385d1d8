"""The public way to use a trained model: ``mlseg_jax.load(workdir)(image)``."""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from input_pipeline.files.images import read_image
from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.inference.probabilities import write_probabilities
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.models.build import check_config
from mlseg_jax.prediction import visualise
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters
from mlseg_jax.settings import keys
from mlseg_jax.tasks.engines import evaluation_policy, make_engine
from mlseg_jax.tasks.given_selection import load_classifier
from mlseg_jax.typing import Bool, Float, UInt, UInt8

Picture = np.ndarray | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Label:
    """A selected label of a picture.

    Attributes:
      name, class_id: which class.
      score: probability that it is in the picture.
      rank: its place by score, from 0.
      share: share of the picture's pixels that have it.
    """

    name: str
    class_id: int
    score: float
    rank: int
    share: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a picture was segmented into.

    Attributes:
      image: the picture.
      label_map: class id of every pixel, uint8 or uint16.
      labels: the selected labels by falling score.
      top_class_ids, top_probabilities: the likeliest classes of every pixel, where they
        were asked for.
    """

    image: UInt8[np.ndarray, "H W 3"]
    label_map: UInt[np.ndarray, "H W"]
    labels: tuple[Label, ...]
    class_names: tuple[str, ...]
    top_class_ids: UInt[np.ndarray, "n H W"] | None = None
    top_probabilities: Float[np.ndarray, "n H W"] | None = None

    def overlay(self) -> UInt8[np.ndarray, "H2 W2 3"]:
        """The picture under its labels, with a legend of those that are present."""
        scores = np.zeros(len(self.class_names))
        for label in self.labels:
            scores[label.class_id] = label.score
        return visualise.overlay(
            self.image, self.label_map.astype(np.int32), self.class_names, scores
        )


class Segmenter:
    """A trained model, ready for pictures of any size."""

    def __init__(
        self,
        engine: Engine,
        info: DatasetInfo,
        policy: SelectionPolicy,
        classifier: LabelScorer | None = None,
    ):
        """``classifier``: what selects, where the policy is ``given``."""
        self.info = info
        self.policy = policy
        self._engine = engine
        self._classifier = classifier

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        k: int | None = None,
        allowed: Sequence[str] | None = None,
        minimum_score: float | None = None,
        cumulative: float | None = None,
        top_labels: int = 0,
    ) -> Prediction | list[Prediction]:
        """Segments one picture, or a list of pictures of different sizes.

        Args:
          images: uint8 ``[H W 3]`` (or ``[H W]``), or the path of a file.
          k: most labels to select; the training's by default.
          allowed: names of the only classes to consider.
          minimum_score: labels with a lower probability are not selected.
          cumulative: only the best labels that together hold this share of all labels'
            probability are. Both are the configuration's by default.
          top_labels: how many of the likeliest classes of each pixel to return with
            their probabilities; 0 for none.

        Raises:
          UserError: an unknown class name, an array that is no picture, ``k`` below 1.
          DataError: a file that cannot be read.
        """
        single = isinstance(images, np.ndarray | str | os.PathLike)
        arrays = [_as_picture(image) for image in ([images] if single else images)]
        policy, mask = self._policy(k, allowed, minimum_score, cumulative)
        predictions = list(self._predict(arrays, policy, mask, top_labels))
        return predictions[0] if single else predictions

    def write_probabilities(self, image: Picture, path: str | os.PathLike) -> None:
        """Streams the probability of every class at every pixel to a Zarr array [C H
        W].

        The only way to the C-wide result; it exists on disk alone (`probabilities`).
        """
        results = self._segment([_as_picture(image)], self.policy, None)
        write_probabilities(results[0], path)

    def _segment(
        self,
        images: list[UInt8[np.ndarray, "_ _ 3"]],
        policy: SelectionPolicy,
        mask: Bool[np.ndarray, "C"] | None,
    ) -> list[Segmented]:
        """Segments among the labels that the model, or the classifier, selects."""
        if policy.name != "given":
            return self._engine.segment(images, [(policy, None)], mask)[0]
        scores = self._classifier(images)
        if mask is not None:
            scores = np.where(mask[None], scores, -np.inf)
        select = dataclasses.replace(policy, name="top_k").select()
        given = jax.device_get(select(jax.numpy.asarray(scores)))
        (results,) = self._engine.segment(images, [(policy, given)], mask)
        # The scores are the classifier's: the model has none.
        ends = np.cumsum([segmented.count for segmented in results])
        return [
            dataclasses.replace(segmented, scores=scores[end - segmented.count : end])
            for segmented, end in zip(results, ends, strict=True)
        ]

    def _policy(self, k, allowed, minimum_score, cumulative):
        policy = self.policy
        if k is not None:
            keys.check_value("selection.k", k)
            policy = dataclasses.replace(policy, k=k)
        mask = None
        if allowed is not None:
            mask = np.zeros(self.info.num_classes, bool)
            mask[[self.class_id(name) for name in allowed]] = True
            if not mask.any():
                raise UserError("The list of allowed classes is empty; name some.")
            # Selecting among the allowed also restricts a baseline, which selects all.
            count = int(mask.sum())
            if policy.name == "complete":
                policy = SelectionPolicy("top_k", count)
            policy = dataclasses.replace(policy, k=min(policy.k, count))
        dynamic = {"minimum_score": minimum_score, "cumulative": cumulative}
        given = {key: value for key, value in dynamic.items() if value is not None}
        for key, value in given.items():
            keys.check_value(f"selection.{key}", value)
        policy = dataclasses.replace(policy, **given)
        return policy, mask

    def class_id(self, name: str) -> int:
        """The id of a class by its name."""
        names = self.info.class_names
        if name in names:
            return names.index(name)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(map(repr, near))}?"
        if not near:
            hint = "the names are in `.info.class_names`."
        raise UserError(f"There is no class {name!r}; {hint}")

    def _predict(self, arrays, policy, mask, top_labels: int) -> Iterator[Prediction]:
        size = self._engine.batch_sizes[0]
        for start in range(0, len(arrays), size):
            images = iter(arrays[start : start + size])
            for segmented in self._segment(arrays[start : start + size], policy, mask):
                maps = segmented.label_maps()
                top = segmented.top_labels(top_labels) if top_labels else None
                selection = jax.device_get(segmented.selection)
                for i in range(segmented.count):
                    yield Prediction(
                        next(images),
                        maps[i],
                        self._labels(segmented, selection, i, maps[i]),
                        self.info.class_names,
                        *((None, None) if top is None else (top[0][i], top[1][i])),
                    )

    def _labels(self, segmented: Segmented, selection, row, label_map):
        """The selected labels of a picture, by falling score."""
        counts = np.bincount(label_map.ravel(), minlength=self.info.num_classes)
        class_ids = selection.class_ids[row]
        if selection.valid is not None:
            class_ids = class_ids[selection.valid[row]]
        scores: Float[np.ndarray, C] = segmented.scores[row]
        order = class_ids[np.argsort(-scores[class_ids], kind="stable")]
        return tuple(
            Label(
                name=self.info.class_names[class_id],
                class_id=int(class_id),
                score=float(1.0 / (1.0 + np.exp(-scores[class_id]))),
                rank=rank,
                share=float(counts[class_id] / label_map.size),
            )
            for rank, class_id in enumerate(order)
        )


def _as_picture(image: Picture) -> UInt8[np.ndarray, "H W 3"]:
    if not isinstance(image, np.ndarray):
        return read_image(image)
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"A picture must be a uint8 array [height, width, 3], not {image.dtype} "
            f"{list(image.shape)}; convert it, or give the path of its file."
        )
    if min(image.shape[:2]) < 2:
        raise UserError(
            f"A picture of {image.shape[0]}x{image.shape[1]} pixels has nothing to "
            f"segment; both sides must be at least 2."
        )
    return image


def load(workdir: str | os.PathLike, checkpoint: str = "latest") -> Segmenter:
    """The model that was trained in ``workdir``.

    Args:
      workdir: a work directory that ``train`` wrote.
      checkpoint: ``latest``, ``best`` (by mIoU) or a step.
    """
    workdir = os.fspath(workdir)
    config = load_config(workdir)
    # The devices of the training need not be here.
    config.mesh.update(data=-1, fsdp=1)
    return load_with_config(workdir, config, checkpoint)


def load_with_config(workdir: str, config, checkpoint: str) -> Segmenter:
    """As `load`, with changes to the ``eval`` and ``selection`` parts."""
    check_config(config)
    info = load_info(workdir)
    if config.task == "multilabel":
        raise UserError(
            f"{workdir} holds a classifier, which segments nothing; its labels come "
            f"from `python main.py predict --workdir={workdir} --images=...`."
        )
    policy = evaluation_policy(config, info.num_classes)
    classifier = None
    if policy.name == "given":
        if not config.selection.classifier:
            raise UserError(
                "The labels of new pictures are in no folder of scores; set "
                "selection.classifier to the work directory of the classifier."
            )
        classifier = load_classifier(config.selection.classifier, info)
    model, parameters, _ = load_parameters(workdir, config, checkpoint)
    engine = make_engine(config, model, parameters, make_mesh(config))
    return Segmenter(engine, info, policy, classifier)
