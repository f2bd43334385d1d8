"""Pictures that the report shows: some of a split, and those that went worst."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath
from pycocotools import mask as coco_mask

from input_pipeline.files import coco_masks
from input_pipeline.info import DatasetInfo
from mlseg_jax.inference.segments import Panoptic, Segment
from mlseg_jax.metrics.instance_precision import TrueInstance
from mlseg_jax.metrics.panoptic_quality import SegmentMatches, TrueSegments
from mlseg_jax.tasks.segmentation_evaluation import NUM_REPORT_EXAMPLES
from mlseg_jax.tasks.selection_evaluation import PictureLabels
from mlseg_jax.typing import VOID, Int

FOUND, WRONG, IGNORED = range(3)
"""What a segment is: matched; missed, or there where nothing is; counted nowhere."""


class SegmentPictures:
    """The first pictures and the worst ones, with the fate of each segment."""

    def __init__(self, info: DatasetInfo):
        self.info = info
        self.first = []
        self.worst = []

    def add_panoptic(
        self,
        example: dict,
        truth: TrueSegments,
        found: Panoptic,
        matches: SegmentMatches,
        labels: PictureLabels,
    ) -> None:
        """A picture of a panoptic evaluation."""
        true_fates = {i: FOUND for i, _, _ in matches.matched}
        true_fates |= dict.fromkeys(matches.missed, WRONG)
        fates = {i: FOUND for _, i, _ in matches.matched}
        fates |= dict.fromkeys(matches.false, WRONG)
        iou = sum(iou for *_, iou in matches.matched)
        wrong = len(matches.missed) + len(matches.false)
        arrays = {
            "true_map": truth.segment_map,
            "true_segments": _table(truth.classes.items(), true_fates),
            "found_map": found.segment_map,
            "found_segments": _table(found.classes.items(), fates),
        }
        quality = iou / max(len(matches.matched) + 0.5 * wrong, 1.0)
        self._keep(quality, example, arrays, labels)

    def add_instances(
        self,
        example: dict,
        true: Sequence[TrueInstance],
        found: Sequence[Segment],
        labels: PictureLabels,
    ) -> None:
        """A picture of an evaluation of instances; shown are those found whose score is
        at least a half, in the order of their scores.
        """
        found = [segment for segment in found if segment.score >= 0.5]
        runs = [s.run_lengths for s in found], [t.run_lengths for t in true]
        crowds = [int(t.is_crowd) for t in true]
        iou = coco_mask.iou(*runs, crowds) if found and true else None
        true_fates = {i: IGNORED if c else WRONG for i, c in enumerate(crowds, 1)}
        fates = {}
        for f, segment in enumerate(found):
            fates[f + 1] = WRONG
            for t, instance in enumerate(true):
                same = instance.class_id == segment.class_id and iou[f, t] > 0.5
                if same and true_fates[t + 1] != FOUND:
                    fates[f + 1] = FOUND if true_fates[t + 1] == WRONG else IGNORED
                    true_fates[t + 1] = fates[f + 1]
                    break
        size = example["image"].shape[:2]
        numbered = [enumerate((x.class_id for x in xs), 1) for xs in (true, found)]
        arrays = {
            "true_map": _lay_over(size, runs[1]),
            "true_segments": _table(numbered[0], true_fates),
            "found_map": _lay_over(size, runs[0]),
            "found_segments": _table(numbered[1], fates),
        }
        right = sum(fate == FOUND for fate in fates.values())
        count = len(fates) + sum(fate != IGNORED for fate in true_fates.values())
        self._keep(2 * right / max(count, 1), example, arrays, labels)

    def _keep(
        self, quality: float, example: dict, arrays: dict, labels: PictureLabels
    ) -> None:
        arrays["quality"] = np.float32(quality)
        entry = (quality, example, arrays, labels)
        if len(self.first) < NUM_REPORT_EXAMPLES // 2:
            self.first.append(entry)
            return
        self.worst = sorted([*self.worst, entry], key=lambda entry: entry[0])
        del self.worst[NUM_REPORT_EXAMPLES // 2 :]

    def save(self, path: epath.Path, label_arrays: Callable) -> None:
        """Writes ``evaluation_examples.npz``; ``label_arrays``: those of labels."""
        arrays = {"names": np.asarray(self.info.class_names)}
        for i, (_, example, own, labels) in enumerate(self.first + self.worst):
            arrays |= label_arrays(i, example, labels)
            arrays |= {f"{name}_{i}": value for name, value in own.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)


def _table(
    classes: Iterable[tuple[int, int]], fates: dict[int, int]
) -> Int[np.ndarray, "n 3"]:
    """Rows of segment id, class id and fate."""
    rows = [(i, class_id, fates.get(i, IGNORED)) for i, class_id in classes]
    return np.asarray(rows, np.int32).reshape(-1, 3)


def _lay_over(size: tuple[int, int], runs: Sequence[dict]) -> Int[np.ndarray, "H W"]:
    """Numbers from 1; the first lie on top."""
    segment_map = np.full(size, VOID, np.int32)
    for number in range(len(runs), 0, -1):
        segment_map[coco_masks.draw(runs[number - 1]) > 0] = number
    return segment_map
