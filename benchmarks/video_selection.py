"""Labels selected per frame against per clip, on videos of SignScenes.

    python benchmarks/video_selection.py --workdir=runs/demo [--videos=20] [--side=96] \
        [--width=96]

For each way to select and each K: mIoU over all frames, VC8 and VC16 (of the pixels
whose truth stands still for so many frames, how many stand still in the prediction),
the labels that come or go from one frame to the next, and the milliseconds of processor
time (of all cores, the least of ``--repeats`` passes) and of wall time a frame. The
model is one of pictures of SignScenes, such as `configs/demo.py` trains in minutes;
docs/video.md has the figures.
"""

import argparse
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

WAYS = {
    "per frame": {"selection_scope": "per_image"},
    "per window": {"selection_scope": "per_window"},
    "clip, mean": {"clip_scores": "mean"},
    "clip, maximum": {"clip_scores": "maximum"},
    "clip, running": {"clip_scores": "running"},
}


def make_videos(args):
    from input_pipeline.datasets.sign_scenes import SignScenes
    from input_pipeline.datasets.sign_videos import SignVideos

    scenes = SignScenes(
        num_classes=args.num_classes,
        image_size=(args.side, args.width or args.side),
        split="val",
        num_examples=args.videos,
    )
    source = SignVideos(scenes=scenes, length=args.frames)
    return [source.read(i, range(args.frames)) for i in range(args.videos)]


def run(segmenter, videos, scope: str, k: int):
    """Label maps and names of the labels of all frames, and seconds a frame."""
    wall, cpu = time.perf_counter(), time.process_time()
    maps, names = [], []
    for video in videos:
        results = list(segmenter.video(video["image"], selection_scope=scope, k=k))
        maps.append(np.stack([result.label_map for result in results]))
        names.append([{x.class_id for x in result.labels} for result in results])
    count = sum(len(video["image"]) for video in videos)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return maps, names, [1000 * seconds / count for seconds in spent]


def scores(videos, maps, names, num_classes: int) -> dict[str, float]:
    from mlseg_jax.metrics.video_consistency import (
        ConsistencyOfVideo,
        VideoConsistency,
    )

    confusion = np.zeros((num_classes, num_classes), np.int64)
    consistency, changes = VideoConsistency.empty(), []
    for video, found, labels in zip(videos, maps, names, strict=True):
        true = video["label_map"]
        known = true >= 0
        pairs = true[known] * num_classes + found[known]
        confusion += np.bincount(pairs, minlength=num_classes**2).reshape(
            num_classes, num_classes
        )
        frames = ConsistencyOfVideo()
        for one, other in zip(found, true, strict=True):
            consistency = consistency.merge(frames.add(one, other))
        changes += [
            len(a ^ b) / 2 for a, b in zip(labels[:-1], labels[1:], strict=True)
        ]
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    present = confusion.sum(1) > 0
    iou = np.diag(confusion)[present] / union[present]
    return {"mIoU": 100 * iou.mean(), "changes": float(np.mean(changes))} | {
        key: 100 * value for key, value in consistency.compute().items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=96, help="rows of a frame")
    parser.add_argument("--width", type=int, default=0, help="columns; 0: as many")
    parser.add_argument("--k", default="5,10,20")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clip-change", type=float, default=0.4, help="eval's")
    args = parser.parse_args()

    from mlseg_jax.prediction.load import load_with_config
    from mlseg_jax.runs.workdir import load_config

    config = load_config(args.workdir)
    config.data.base_size = (0, 0)
    config.eval.batch_size = 8  # clips are whole batches
    config.eval.clip_change = args.clip_change
    args.num_classes = config.data.num_classes
    videos = make_videos(args)
    rows, columns = videos[0]["image"].shape[1:3]
    print(f"{args.videos} videos of {args.frames} frames of {rows}x{columns}")
    print("| K | labels | mIoU | VC8 | VC16 | changes | CPU ms | wall ms |")
    print("|---|---|---|---|---|---|---|---|")
    segmenters = {}
    for name, settings in WAYS.items():
        config.eval.update(settings)
        segmenters[name] = load_with_config(args.workdir, config, "latest")
    for k in map(int, args.k.split(",")):
        for name, segmenter in segmenters.items():
            scope = WAYS[name].get("selection_scope", "per_clip")
            run(segmenter, videos[:1], scope, k)  # compiles
            passes = [run(segmenter, videos, scope, k) for _ in range(args.repeats)]
            maps, names, _ = passes[0]
            cpu, wall = np.min([times for *_, times in passes], axis=0)
            found = scores(videos, maps, names, args.num_classes)
            cells = [f"{found[key]:.2f}" for key in ("mIoU", "VC8", "VC16", "changes")]
            cells = [str(k), name, *cells, f"{cpu:.1f}", f"{wall:.1f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
