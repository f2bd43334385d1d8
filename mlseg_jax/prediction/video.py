"""What ``predict --video`` does: label maps, lines and an overlay of a whole video.

First all frames are segmented, each once, and written; then the overlay is drawn out of
what was written (`video_overlay`). Both go on, or begin again, where they were killed
(`video_record`). Memory is that of a few frames, whatever the length.
"""

import collections
import logging
import os
from collections.abc import Iterator

import cv2
from etils import epath

from input_pipeline.files.images import write_label_map
from input_pipeline.files.video import AbstractVideo, Frame
from input_pipeline.info import DataError
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.batches import is_lack_of_memory
from mlseg_jax.prediction.files import label_entries, segment_entry
from mlseg_jax.prediction.prediction import Prediction
from mlseg_jax.prediction.segmenter import Segmenter
from mlseg_jax.prediction.video_overlay import VideoOverlay
from mlseg_jax.prediction.video_record import (
    LABEL_MAPS,
    OVERLAY,
    VideoRecord,
)
from mlseg_jax.prediction.video_writer import VideoWriter, check_can_write
from mlseg_jax.runs.progress import progress_bar

logger = logging.getLogger(__name__)


def write_video(
    segmenter: Segmenter, video: AbstractVideo, output: epath.Path, job: dict, font: str
) -> VideoRecord:
    """Writes all results of a video into ``output``, or what is missing of them.

    Args:
      segmenter: what segments.
      video: what is segmented.
      output: a local directory.
      job: what else the results depend on (`video_record.VideoRecord`).
      font: letters of the overlay.

    Raises:
      UserError: the directory has other results; a frame needs too much memory.
      DataError: the video has no frame that can be read.
    """
    check_can_write(video.name)
    if _place(video) == os.path.realpath(output / OVERLAY):
        raise UserError(
            f"{output / OVERLAY} would be written over --video; choose another "
            f"--output."
        )
    record = VideoRecord(output, job | {"video": _identity(video)})
    if record.complete:
        logger.info("%s was complete already", output)
        return record
    if record.num_frames:
        logger.info("going on after %d frames that are done", record.num_frames)
    _segment(segmenter, video, record)
    if record.num_frames:
        _draw(video, record, segmenter.info.class_names, font)
    # Of all frames: whoever draws reads from the first, whoever goes on does not.
    record.finish(video.problems)
    return record


def _identity(video: AbstractVideo) -> dict:
    return {"path": _place(video)} | video.identity()


def _place(video: AbstractVideo) -> str:
    return os.path.realpath(os.path.expanduser(video.name))


def _segment(segmenter: Segmenter, video: AbstractVideo, record: VideoRecord) -> None:
    """Label maps and lines of all frames that have none yet."""
    state = segmenter.video_state()
    for line in record.lines():
        state.clip = line.get("clip", -1) + 1
        if state.tracker is not None:
            state.tracker.repeat(line["segments"])
    state.memory = record.memory
    if state.tracker is not None:
        state.tracker.recall(record.memory)
    waiting: collections.deque[Frame] = collections.deque()

    def pictures() -> Iterator:
        for frame in _new_problems_said(video, record.following):
            waiting.append(frame)
            yield frame.image

    with progress_bar(video.num_frames, record.following, "predicting", "frame") as bar:
        lines = []
        try:
            for prediction in segmenter.video(pictures(), state=state):
                frame = waiting.popleft()
                number = record.num_frames + len(lines)
                lines.append(_write_frame(record, number, frame, prediction, segmenter))
                bar.update(frame.index + 1 - bar.n)
                del prediction
                if not waiting:  # all that were read together are done
                    memory = segmenter.video_memory(state)
                    record.add(lines, frame.index + 1, memory)
                    lines = []
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            raise UserError(
                f"Frames of {video.name} need more memory than there is; "
                f"{segmenter.memory_advice}."
            ) from error


def _new_problems_said(video: AbstractVideo, start: int) -> Iterator[Frame]:
    """The frames from ``start`` on; what cannot be read is said when it is met."""
    said = 0
    for frame in video.frames(start):
        if frame.index >= start:
            yield frame
        for sentence in video.problems[said:]:
            logger.warning("%s", sentence)
        said = len(video.problems)
    for sentence in video.problems[said:]:
        logger.warning("%s", sentence)


def _write_frame(
    record: VideoRecord,
    number: int,
    frame: Frame,
    prediction: Prediction,
    segmenter: Segmenter,
) -> dict:
    """Writes the label map of a frame; returns its line."""
    name = f"{LABEL_MAPS}/{frame.index:06d}.png"
    label_map, num_classes = prediction.label_map, segmenter.info.num_classes
    write_label_map(record.folder / name, label_map, num_classes)
    line = {"frame": frame.index, "time": round(float(frame.time), 6)}
    if frame.name:
        line["image"] = frame.name
    if prediction.clip is not None:
        line["clip"] = prediction.clip
    line |= {"label_map": name, "labels": label_entries(prediction)}
    if prediction.found is None:
        return line
    tracked = zip(prediction.segments, prediction.tracks, strict=True)
    line["segments"] = [
        {"track": track} | segment_entry(segment) | {"segmentation": _runs(segment)}
        for segment, track in tracked
        if track is not None
    ]
    return line


def _runs(segment) -> dict:
    """COCO's compressed run lengths, for JSON."""
    runs = segment.run_lengths
    return {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}


def _draw(video: AbstractVideo, record: VideoRecord, class_names, font: str) -> None:
    """The overlay, which is there when it is complete."""
    part = record.folder / f"{OVERLAY}.part"
    overlay = writer = None
    lines = record.lines()
    with progress_bar(record.num_frames, 0, "drawing", "frame") as bar:
        try:
            line = next(lines, None)
            for frame in video.frames():
                # Of those before it that cannot be read any more, nothing is drawn.
                while line is not None and line["frame"] < frame.index:
                    line = next(lines, None)
                if line is None or frame.index != line["frame"]:
                    continue
                path = os.fspath(record.folder / line["label_map"])
                label_map = cv2.imread(path, cv2.IMREAD_UNCHANGED)
                if label_map is None:
                    raise UserError(
                        f"{path}, which was written, cannot be read any more; choose "
                        f"another --output, or remove {record.folder}."
                    )
                if overlay is None:
                    size = frame.image.shape[:2]
                    overlay = VideoOverlay(size, class_names, record.lines(), font)
                    timing = video.frame_rate, video.time_base
                    writer = VideoWriter(part, overlay.size, *timing)
                writer.add(overlay.draw(frame.image, label_map, line), frame.time)
                bar.update()
                line = next(lines, None)
        finally:
            if writer is not None:
                writer.close()
    if writer is None:
        raise DataError(
            f"Of {video.name} no frame that was segmented can be read any more; copy "
            f"it again."
        )
    part.replace(record.folder / OVERLAY)
