"""The public way to use a trained model: ``mlseg_jax.load(workdir)(image)``."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import no_type_check

import jax
import numpy as np
from etils import epath

from input_pipeline.datasets.open import read_options
from input_pipeline.files.images import USUAL, ReadOptions
from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.inference.probabilities import write_probabilities
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.models.build import check_config
from mlseg_jax.prediction import fonts, visualise
from mlseg_jax.prediction.pictures import Picture, as_picture, as_pictures
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters
from mlseg_jax.settings.kinds import COUNT, COUNT_OR_NONE, PROBABILITY, check
from mlseg_jax.tasks.given_selection import load_classifier
from mlseg_jax.tasks.semantic_evaluation import evaluation_policy, make_engine
from mlseg_jax.typing import Bool, Float, UInt, UInt8


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
      font: letters that `overlay` writes names with (``eval.font``).
    """

    image: UInt8[np.ndarray, "H W 3"]
    label_map: UInt[np.ndarray, "H W"]
    labels: tuple[Label, ...]
    class_names: tuple[str, ...]
    top_class_ids: UInt[np.ndarray, "n H W"] | None = None
    top_probabilities: Float[np.ndarray, "n H W"] | None = None
    font: str = ""

    def overlay(self) -> UInt8[np.ndarray, "H2 W2 3"]:
        """The picture under its labels, with a legend of those that are present."""
        scores = np.zeros(len(self.class_names))
        for label in self.labels:
            scores[label.class_id] = label.score
        return visualise.overlay(
            self.image,
            self.label_map.astype(np.int32),
            self.class_names,
            scores,
            font=self.font,
        )


class Segmenter:
    """A trained model, ready for pictures of any size."""

    def __init__(
        self,
        engine: Engine,
        info: DatasetInfo,
        policy: SelectionPolicy,
        classifier: LabelScorer | None = None,
        *,
        reading: ReadOptions = USUAL,
        font: str = "",
    ):
        """``classifier``: what selects, where the policy is ``given``; ``reading``: how
        files are; ``font``: letters of overlays.
        """
        self.info = info
        self.policy = policy
        self._engine = engine
        self._classifier = classifier
        self._reading = reading
        self._font = font

    @no_type_check  # what is of another type is said in a sentence
    def __call__(
        self,
        images: Picture | Sequence[Picture],
        *,
        k: int | None = None,
        allowed: str | Iterable[str] | None = None,
        minimum_score: float | None = None,
        cumulative: float | None = None,
        top_labels: int = 0,
    ) -> Prediction | list[Prediction]:
        """Segments one picture, or a list of pictures of different sizes.

        Args:
          images: what `pictures.as_picture` takes: the path of a file, its bytes, a
            uint8 array ``[H W 3]`` (or ``[H W]``, ``[H W 1]``, ``[H W 4]``), a PIL
            picture; or a list of them.
          k: most labels to select; the training's by default.
          allowed: names of the only classes to consider, or one name.
          minimum_score: labels with a lower probability are not selected.
          cumulative: only the best labels that together hold this share of all labels'
            probability are. Both are the configuration's by default.
          top_labels: how many of the likeliest classes of each pixel to return with
            their probabilities; 0 for none.

        Raises:
          UserError: an unknown class name, something that is no picture, a number out
            of its range.
          DataError: a file that cannot be read.
        """
        check("top_labels", top_labels, COUNT_OR_NONE)
        policy, mask = self._policy(k, allowed, minimum_score, cumulative)
        arrays, single = as_pictures(images, self._reading)
        predictions = list(self._predict(arrays, policy, mask, top_labels))
        return predictions[0] if single else predictions

    @no_type_check
    def write_probabilities(self, image: Picture, path: str | os.PathLike) -> None:
        """Streams the probability of every class at every pixel to a Zarr array [C H
        W].

        The only way to the C-wide result; it exists on disk alone (`probabilities`).
        """
        picture = as_picture(image, self._reading)
        results = self._segment([picture], self.policy, None)
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
            check("k", k, COUNT)
            policy = dataclasses.replace(policy, k=int(k))
        mask = None
        if allowed is not None:
            if not isinstance(allowed, Iterable):
                raise UserError(
                    f"allowed is {allowed!r}; give a list of names of classes."
                )
            names = [allowed] if isinstance(allowed, str) else list(allowed)
            mask = np.zeros(self.info.num_classes, bool)
            mask[[self.class_id(name) for name in names]] = True
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
            check(key, value, PROBABILITY)
            given[key] = float(value)
        policy = dataclasses.replace(policy, **given)
        return policy, mask

    @no_type_check
    def class_id(self, name: str) -> int:
        """The id of a class by its name."""
        names = self.info.class_names
        if isinstance(name, str) and name in names:
            return names.index(name)
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
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
                        font=self._font,
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


@no_type_check
def load(workdir: str | os.PathLike, checkpoint: str = "latest") -> Segmenter:
    """The model that was trained in ``workdir``.

    Args:
      workdir: a work directory that ``train`` wrote.
      checkpoint: ``latest``, ``best`` (by mIoU) or a step.
    """
    if not isinstance(workdir, str | os.PathLike) or not os.fspath(workdir):
        raise UserError(f"workdir is {workdir!r}; give the directory of a run.")
    workdir, checkpoint = os.fspath(epath.Path(workdir).expanduser()), str(checkpoint)
    config = load_config(workdir)
    # The devices of the training need not be here.
    config.mesh.update(data=-1, fsdp=1)
    return load_with_config(workdir, config, checkpoint)


def load_with_config(workdir: str, config, checkpoint: str) -> Segmenter:
    """As `load`, with changes to the ``eval`` and ``selection`` parts."""
    check_config(config)
    fonts.check(config.eval.font)
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
    reading, font = read_options(config.data), config.eval.font
    return Segmenter(engine, info, policy, classifier, reading=reading, font=font)
