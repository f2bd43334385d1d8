"""Shards of a data set that is being prepared: each written whole, by one process.

A shard is done when the file with its counts lies beside it, and is not written again.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.info import DataError
from input_pipeline.preparation import class_statistics
from input_pipeline.preparation.prepared import RawExample, SegmentationBuilder

_SHARD_EXAMPLES = 128
_MAX_SHARDS = 1000
PLAN_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    split: str
    index: int
    count: int  # Shards of the split.
    examples: Sequence[RawExample]
    skip_bad: bool

    def path(self, work: pathlib.Path, builder_name: str) -> pathlib.Path:
        return work / (
            f"{builder_name}-{self.split}.array_record-"
            f"{self.index:05d}-of-{self.count:05d}"
        )


def plan_shards(
    builder: SegmentationBuilder,
    splits: Mapping[str, Sequence[RawExample]],
    work: pathlib.Path,
    on_bad_example: str,
) -> list[Shard]:
    """Cuts the splits into shards, the same ones as before if work has begun."""
    keys = {s: "\n".join(raw.key for raw in raws) for s, raws in splits.items()}
    plan = {
        "version": str(builder.version),
        "keys": {s: hashlib.sha256(k.encode()).hexdigest() for s, k in keys.items()},
        "on_bad_example": on_bad_example,
    }
    path = work / PLAN_FILE
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        class_statistics.write_json(path, plan)
    elif json.loads(path.read_text(encoding="utf-8")) != plan:
        raise DataError(
            f"{work} holds an unfinished preparation of other files or with another "
            "--on_bad_example; remove it, or run the command as it was."
        )
    skip_bad = on_bad_example == "skip"
    shards = []
    for split, raws in splits.items():
        length = max(_SHARD_EXAMPLES, -(-len(raws) // _MAX_SHARDS))
        parts = [raws[start : start + length] for start in range(0, len(raws), length)]
        shards += [
            Shard(split, i, len(parts), p, skip_bad) for i, p in enumerate(parts)
        ]
    return shards


def write_shards(
    builder: SegmentationBuilder,
    shards: Sequence[Shard],
    work: pathlib.Path,
    num_workers: int | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, class_statistics.SplitRecord]:
    """Writes the shards that are not there yet; returns the counts of each split."""
    totals, done = {}, {}
    for shard in shards:
        totals[shard.split] = totals.get(shard.split, 0) + len(shard.examples)
        done.setdefault(shard.split, 0)
    todo = []
    for shard in shards:
        if record_path(shard.path(work, builder.name)).is_file():
            done[shard.split] += len(shard.examples)
        else:
            todo.append(shard)
    for split, count in done.items():
        progress(split, count, totals[split])

    def report(shard: Shard) -> None:
        done[shard.split] += len(shard.examples)
        progress(shard.split, done[shard.split], totals[shard.split])

    if num_workers == 0 or len(todo) < 2:
        for shard in todo:
            _write_shard(builder, shard, work)
            report(shard)
    else:
        workers = min(num_workers or os.cpu_count() or 1, len(todo))
        _write_in_processes(builder, todo, work, workers, report)
    records = {split: class_statistics.SplitRecord() for split in totals}
    for shard in shards:
        records[shard.split].extend(load_record(shard.path(work, builder.name)))
    return records


def _write_in_processes(builder, todo, work, workers, report) -> None:
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # Not fork: this process may have threads, of JAX for one.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        shard_of = {pool.submit(_write_shard, builder, s, work): s for s in todo}
        for future in concurrent.futures.as_completed(shard_of):
            future.result()
            report(shard_of[future])
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            "A process that prepares data was killed, perhaps for want of memory; run "
            "the same command again with fewer --num_workers to go on."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _write_shard(
    builder: SegmentationBuilder, shard: Shard, work: pathlib.Path
) -> None:
    """Writes one shard and then, as the sign that it is whole, its counts."""
    path = shard.path(work, builder.name)
    # Two commands at the same time write two files, and each moves a whole one.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    record = class_statistics.SplitRecord()
    serializer = tfds.core.example_serializer.ExampleSerializer(
        builder.info.features.get_serialized_info()
    )

    def serialize():
        for index, raw in enumerate(shard.examples):
            try:
                features = builder.encode(raw, record)
            except DataError as error:
                if not shard.skip_bad:
                    raise
                record.skipped.append(f"{raw.key}: {error}")
                continue
            encoded = builder.info.features.encode_example(features)
            yield index, serializer.serialize_example(encoded)

    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[
        tfds.core.file_adapters.FileFormat.ARRAY_RECORD
    ]
    adapter.write_examples(part, serialize())
    part.replace(path)
    _save_record(path, record)


def record_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".npz")


def _save_record(path: pathlib.Path, record: class_statistics.SplitRecord) -> None:
    presence = class_statistics.Presence.collect(record.counts)
    part = path.with_name(f"{path.name}.{os.getpid()}.part.npz")
    np.savez(
        part,
        offsets=presence.offsets,
        class_ids=presence.class_ids,
        pixels=presence.pixels,
        totals=[record.num_pixels, record.ignored_pixels],
        skipped=json.dumps(record.skipped),
    )
    part.replace(record_path(path))


def load_record(path: pathlib.Path) -> class_statistics.SplitRecord:
    with np.load(record_path(path)) as file:
        ends = file["offsets"]
        ids, pixels = file["class_ids"], file["pixels"]
        counts = [
            (ids[a:b], pixels[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)
        ]
        num_pixels, ignored = file["totals"].tolist()
        return class_statistics.SplitRecord(
            counts, num_pixels, ignored, json.loads(str(file["skipped"]))
        )
