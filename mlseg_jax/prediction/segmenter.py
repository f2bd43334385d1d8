"""The public way to use a trained model: ``mlseg_jax.load(workdir)(image)``."""

import dataclasses
import difflib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import no_type_check

import jax
import numpy as np
from etils import epath

from input_pipeline.datasets.open import read_options
from input_pipeline.files.images import USUAL, ReadOptions
from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference.bands import needs_bands, segment_in_bands
from mlseg_jax.inference.engine import Engine
from mlseg_jax.inference.label_scores import LabelScorer
from mlseg_jax.inference.probabilities import write_probabilities
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.inference.regions import SegmentedRegions
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.models.build import check_config
from mlseg_jax.prediction import fonts, visualise
from mlseg_jax.prediction.pictures import Picture, as_picture, as_pictures
from mlseg_jax.prediction.prediction import Label, Prediction
from mlseg_jax.runs.workdir import load_config, load_info, load_parameters
from mlseg_jax.settings.kinds import COUNT, COUNT_OR_NONE, PROBABILITY, check
from mlseg_jax.tasks.engines import evaluation_policy, make_engine
from mlseg_jax.tasks.given_selection import load_classifier
from mlseg_jax.tasks.table import find_task
from mlseg_jax.typing import Bool, Int, UInt8

Found = Panoptic | tuple[Segment, ...]


class Segmenter:
    """A trained model, ready for pictures of any size."""

    def __init__(
        self,
        engine: Engine,
        info: DatasetInfo,
        policy: SelectionPolicy,
        classifier: LabelScorer | None = None,
        *,
        find_segments: Callable[[SegmentedRegions], Found] | None = None,
        reading: ReadOptions = USUAL,
        font: str = "",
    ):
        """``classifier``: what selects, where the policy is ``given``;
        ``find_segments``: what the task makes of a picture beside its label map;
        ``reading``: how files are; ``font``: letters of overlays.
        """
        self.info = info
        self.policy = policy
        self._engine = engine
        self._classifier = classifier
        self._find_segments = find_segments
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
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise UserError(f"path is {path!r}; give that of a new directory.")
        if self._engine.num_queries:
            raise UserError(
                "Regions have scores, no probabilities of pixels; ask for top_labels."
            )
        picture = as_picture(image, self._reading)
        parts = ((rows.start, part) for rows, part in self._bands(picture))
        if not needs_bands(self._engine, picture.shape[:2]):
            parts = [(0, self._segment([picture], self.policy, None)[0])]
        num_classes = self.info.num_classes
        write_probabilities(parts, path, (num_classes, *picture.shape[:2]))

    def _segment(
        self,
        images: list[UInt8[np.ndarray, "_ _ 3"]],
        policy: SelectionPolicy,
        mask: Bool[np.ndarray, "C"] | None,
    ) -> list[Segmented] | list[SegmentedRegions]:
        """Segments among the labels that the model, or the classifier, selects."""
        if policy.name != "given":
            return self._engine.segment(images, [(policy, None)], mask)[0]
        scores, given = self._classify(images, policy, mask)
        (results,) = self._engine.segment(images, [(policy, given)], mask)
        # The scores are the classifier's: the model has none.
        ends = np.cumsum([segmented.count for segmented in results])
        return [
            dataclasses.replace(segmented, scores=scores[end - segmented.count : end])
            for segmented, end in zip(results, ends, strict=True)
        ]

    def _bands(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        policy: SelectionPolicy | None = None,
        mask: Bool[np.ndarray, "C"] | None = None,
    ) -> Iterator[tuple[slice, Segmented]]:
        """As `_segment`, of a large picture: bands of rows, and what is in them."""
        policy = self.policy if policy is None else policy
        scores = given = None
        if policy.name == "given":
            scores, given = self._classify([image], policy, mask)
        bands = segment_in_bands(self._engine, image, policy, given, mask)
        for rows, segmented in bands:
            if scores is not None:
                segmented = dataclasses.replace(segmented, scores=scores)
            yield rows, segmented

    def _classify(self, images, policy: SelectionPolicy, mask):
        """The classifier's scores [N C], and what is selected by them."""
        scores = self._classifier(images)
        if mask is not None:
            scores = np.where(mask[None], scores, -np.inf)
        select = dataclasses.replace(policy, name="top_k").select()
        return scores, jax.device_get(select(jax.numpy.asarray(scores)))

    def _policy(self, k, allowed, minimum_score, cumulative):
        policy = self.policy
        if k is not None:
            check("k", k, COUNT)
            policy = dataclasses.replace(policy, k=int(k))
        mask = None
        if allowed is not None:
            if not isinstance(allowed, Iterable) or isinstance(allowed, bytes):
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
        is_large = lambda image: needs_bands(self._engine, image.shape[:2])  # noqa: E731
        for large, run in itertools.groupby(arrays, is_large):
            size = 1 if large else self._engine.batch_sizes[0]
            images = list(run)
            for start in range(0, len(images), size):
                chosen = images[start : start + size]
                if large:
                    yield self._predict_large(*chosen, policy, mask, top_labels)
                else:
                    yield from self._predict_few(chosen, policy, mask, top_labels)

    def _predict_few(self, arrays, policy, mask, top_labels) -> Iterator[Prediction]:
        images = iter(arrays)
        for segmented in self._segment(arrays, policy, mask):
            maps = segmented.label_maps()
            top = segmented.top_labels(top_labels) if top_labels else None
            selection = jax.device_get(segmented.selection)
            found = self._find_segments and self._find_segments(segmented)
            for i in range(segmented.count):
                yield self._prediction(
                    next(images),
                    maps[i],
                    _selected(selection, i),
                    segmented.scores[i],
                    (None, None) if top is None else (top[0][i], top[1][i]),
                    found,
                )

    def _predict_large(self, image, policy, mask, top_labels: int) -> Prediction:
        num_classes, size = self.info.num_classes, image.shape[:2]
        selected = np.zeros(num_classes, bool)
        scores = np.full(num_classes, -np.inf, np.float32)
        label_map, count = None, min(top_labels, num_classes)
        for rows, segmented in self._bands(image, policy, mask):
            (part,) = segmented.label_maps()
            if label_map is None:
                label_map = np.zeros(size, part.dtype)
                top = (
                    np.zeros((count, *size), part.dtype),
                    np.zeros((count, *size), np.float16),
                )
            label_map[rows] = part
            if count:  # a band may have fewer labels
                for whole, (few,) in zip(top, segmented.top_labels(count), strict=True):
                    whole[: len(few), rows] = few
            selected[_selected(jax.device_get(segmented.selection), 0)] = True
            scores = np.maximum(scores, segmented.scores[0])
        return self._prediction(
            image,
            label_map,
            np.flatnonzero(selected),
            scores,
            top if count else (None, None),
        )

    def _prediction(
        self, image, label_map, class_ids, scores, top, found=None
    ) -> Prediction:
        """With the selected labels by falling score."""
        counts = visualise.count_labels(label_map, self.info.num_classes)
        order = class_ids[np.argsort(-scores[class_ids], kind="stable")]
        labels = tuple(
            Label(
                name=self.info.class_names[class_id],
                class_id=int(class_id),
                score=float(1.0 / (1.0 + np.exp(-scores[class_id]))),
                rank=rank,
                share=float(counts[class_id] / label_map.size),
            )
            for rank, class_id in enumerate(order)
        )
        names = self.info.class_names
        return Prediction(image, label_map, labels, names, *top, found, self._font)


def _selected(selection: Selection, row: int) -> Int[np.ndarray, "n"]:
    """The class ids that are selected for a picture of a batch."""
    class_ids = selection.class_ids[row]
    return class_ids if selection.valid is None else class_ids[selection.valid[row]]


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
    if policy.name == "oracle":
        raise UserError(
            "The selection 'oracle' looks at true label maps, which new pictures have "
            "not; set selection.eval_name to top_k or complete."
        )
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
    find = find_task(config).find_segments
    if find is not None:
        find = functools.partial(find, settings=config.eval, info=info)
    return Segmenter(
        *(engine, info, policy, classifier),
        find_segments=find,
        reading=reading,
        font=font,
    )
