"""``predict``: label maps, overlays and labels of pictures, or of a video."""

import dataclasses
import functools
import json
import os
from fractions import Fraction

from etils import epath

from input_pipeline.datasets.open import read_options
from input_pipeline.files.images import write_label_map
from input_pipeline.files.video import open_video
from mlseg_jax.cli.flags import required
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.batches import check_done, predictions
from mlseg_jax.prediction.coco_files import SegmentFiles
from mlseg_jax.prediction.files import (
    LABELS,
    check_output,
    labels_line,
    output_names,
    picture_paths,
    replaced_when_complete,
    write_drawing,
)
from mlseg_jax.prediction.labels import write_label_scores, write_labels
from mlseg_jax.prediction.load import load_with_config
from mlseg_jax.prediction.raw_values import raw_value_writer
from mlseg_jax.prediction.video import write_video
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.tasks.table import find_task


def run(flags) -> None:
    workdir, config = required(flags, "workdir"), flags.config
    if flags.scores:
        checkpoint = flags.checkpoint if flags["checkpoint"].present else "best"
        write_label_scores(config, workdir, checkpoint, flags.scores)
        print(flags.scores)
        return
    output = epath.Path(required(flags, "output"))
    if flags.video is not None:
        _predict_video(flags, config, workdir, output)
        return
    paths, problems = picture_paths(flags.images)
    if config.task == "multilabel":
        if flags.raw_values:
            raise UserError(
                "A classifier writes no label maps; leave out --raw_values."
            )
        done = write_labels(config, workdir, flags.checkpoint, paths, output, problems)
    else:
        segmenter = load_with_config(workdir, config, flags.checkpoint)
        info = segmenter.info
        write = functools.partial(write_label_map, num_classes=info.num_classes)
        if flags.raw_values:
            write = raw_value_writer(info, workdir)
        done = _write_segmented(segmenter, config, paths, output, problems, write)
    check_done(done, problems, output)
    what = "labels of " if config.task == "multilabel" else ""
    print(f"{what}{done} pictures in {output}")


def _predict_video(flags, config, workdir: str, output: epath.Path) -> None:
    """Results of a video; see `video.write_video`.

    Raises:
      UserError: flags do not go together, or not all could be read, when the rest is
        written.
    """
    if flags.images or flags.raw_values or config.task == "multilabel":
        wrong = "--images" if flags.images else "a classifier"
        wrong = "--raw_values" if flags.raw_values else wrong
        raise UserError(f"--video does not go with {wrong}; leave one of them out.")
    if not 1e-3 <= flags.frame_rate < 1e4:
        raise UserError(
            f"--frame_rate is {flags.frame_rate}; give frames a second, from 0.001 to "
            f"10,000."
        )
    rate = Fraction(flags.frame_rate).limit_denominator(1001)
    reading = read_options(config.data)
    video = open_video(flags.video, reading, rate)
    segmenter = load_with_config(workdir, config, flags.checkpoint)
    settings = config.eval.to_dict() | {"base_size": config.data.base_size}
    # Neither changes what is found.
    del settings["batch_size"], settings["font"]
    job = {
        "model": {"workdir": os.path.realpath(workdir), "step": segmenter.step},
        "task": config.task,
        "settings": settings | {"selection": config.selection.to_dict()},
        "reading": dataclasses.asdict(reading),
        "frame_rate": str(video.frame_rate),
    }
    record = write_video(segmenter, video, output, job, config.eval.font)
    done = f"{record.num_frames:,} frames in {output}"
    if record.problems:
        more = len(record.problems) - 1
        others = f" (and {more:,} more, said above)" if more else ""
        raise UserError(f"{record.problems[0].rstrip('.')}{others}; {done}.")
    print(done)


def _write_segmented(segmenter, config, paths, output, problems, write) -> int:
    """Label maps (by ``write``), overlays, labels and segments; how many pictures there
    are of.
    """
    names = output_names(paths)
    output.mkdir(parents=True, exist_ok=True)
    check_output(output, names, paths)
    reading, done = read_options(config.data), 0
    with (
        replaced_when_complete(output) as folder,
        progress_bar(len(paths), 0, "predicting") as bar,
        (folder / LABELS).open("w") as lines,
    ):
        files = None
        if find_task(config).find_segments is not None:
            files = SegmentFiles(config.task, folder, segmenter.info)
        for index, prediction in predictions(
            paths, segmenter, config.eval.batch_size, problems, reading
        ):
            label_map, overlay = names[index]
            write(folder / label_map, prediction.label_map)
            write_drawing(folder / overlay, prediction.draw())
            line = labels_line(paths[index], names[index], prediction)
            lines.write(json.dumps(line) + "\n")
            if files is not None:
                stem = label_map.removesuffix(".png")
                size = prediction.label_map.shape
                files.add(str(paths[index]), stem, size, prediction.found)
            done += 1
            bar.update(index + 1 - bar.n)
        if not done:
            check_done(0, problems, output)
        if files is not None:
            files.close()
    return done
