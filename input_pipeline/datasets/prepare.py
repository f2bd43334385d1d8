"""Prepares a data set: many processes, taken up where it was stopped.

Examples are cut, in order, into shards of a fixed length. Each process reads, checks and
writes whole shards, and a shard counts as done when the file with its counts lies beside
it; the same command after a kill skips those. The directory gets its final name when
everything is there.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import prepared
from input_pipeline.datasets.export import print_progress
from input_pipeline.datasets.info import DataError
from input_pipeline.datasets.prepared import RawExample, SegmentationBuilder

BUILDERS = {
    "ade20k": "input_pipeline.datasets.ade20k:Ade20k",
    "ade20k_full": "input_pipeline.datasets.ade20k_full:Ade20kFull",
    "coco_stuff": "input_pipeline.datasets.coco_stuff:CocoStuff",
    "pascal_context": "input_pipeline.datasets.pascal_context:PascalContext",
}
"""Module and class of each builder; variants follow a slash: ``coco_stuff/164k``."""

_SHARD_EXAMPLES = 128
_MAX_SHARDS = 1000
_PLAN_FILE = "plan.json"


def prepare(
    name: str,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    num_workers: int | None = None,
    allow_incomplete: bool = False,
    on_bad_example: str = "fail",
    progress: Callable[[str, int, int], None] = print_progress,
) -> pathlib.Path:
    """Prepares a data set, or finishes doing so; does nothing if it is there already.

    Args:
      name: a row of BUILDERS, perhaps with a variant, such as "coco_stuff/164k".
      manual_dir: directory of the raw files, in the layout of ``docs/datasets.md``.
      data_dir: the result goes to ``<data_dir>/<name>[/<variant>]/<version>``.
      num_workers: processes; None takes one a core, 0 works in this process.
      allow_incomplete: whether a copy with fewer or more examples than were published
        is only reported; else it is an error.
      on_bad_example: "fail", or "skip" to leave out and report examples that cannot be
        read.
      progress: called with the split, the number of its examples done and their total.

    Returns:
      The directory that `Prepared` opens.

    Raises:
      DataError: the raw files are missing, incomplete or wrong.
      ValueError: on_bad_example has another value.
    """
    if on_bad_example not in ("fail", "skip"):
        raise ValueError(f'on_bad_example is {on_bad_example!r}, not "fail" or "skip".')
    builder = make_builder(name, data_dir)
    final = pathlib.Path(builder.data_dir)
    if (final / prepared.STATISTICS_FILE).is_file():
        return final
    manual_dir = pathlib.Path(manual_dir)
    if not manual_dir.is_dir():
        raise DataError(f"There is no directory {manual_dir}; correct --manual_dir.")
    splits = {s: list(raws) for s, raws in builder.raw_splits(manual_dir).items()}
    prepared.check_keys(splits, name)
    message = count_message(builder, splits)
    if message and not allow_incomplete:
        raise DataError(f"{message}; complete it, or add --allow_incomplete.")
    work = final.with_name(final.name + ".incomplete")
    shards = _plan_shards(builder, splits, work, on_bad_example)
    records = _write_shards(builder, shards, work, num_workers, progress)
    _finish(builder, shards, records, work)
    work.replace(final)
    for split, record in records.items():
        if record.skipped:
            print(
                f"{split}: left out {len(record.skipped)} examples; first: "
                f"{record.skipped[0]}"
            )
    if message:
        print(f"Note: {message}.")
    return final


def make_builder(name: str, data_dir: str | os.PathLike) -> SegmentationBuilder:
    """The builder of a row of BUILDERS, perhaps with a variant after a slash."""
    base, _, variant = name.partition("/")
    if base not in BUILDERS:
        raise DataError(
            f"There is no builder for the data set {base!r}; choose one of "
            f"{', '.join(sorted(BUILDERS))}."
        )
    module, _, class_name = BUILDERS[base].partition(":")
    builder_class = getattr(importlib.import_module(module), class_name)
    known = [config.name for config in builder_class.BUILDER_CONFIGS]
    if variant and variant not in known:
        raise DataError(
            f"Data set {base!r} has no variant {variant!r}; choose one of "
            f"{', '.join(known) or 'none'}."
        )
    kwargs = {"config": variant} if variant else {}
    return builder_class(data_dir=data_dir, file_format="array_record", **kwargs)


def find_prepared(name: str, data_dir: str | os.PathLike) -> pathlib.Path:
    """Where `prepare` put, or would put, a data set."""
    return pathlib.Path(make_builder(name, data_dir).data_dir)


def count_message(
    builder: SegmentationBuilder, splits: Mapping[str, Sequence[RawExample]]
) -> str:
    """How the numbers of examples differ from the published ones; "" if they agree."""
    parts = [
        f"{len(splits.get(split, ())):,} of {count:,} {split} examples"
        for split, count in builder.expected_examples().items()
        if len(splits.get(split, ())) != count
    ]
    return f"This copy of {builder.name} has {' and '.join(parts)}" if parts else ""


@dataclasses.dataclass(frozen=True)
class _Shard:
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


def _plan_shards(
    builder: SegmentationBuilder,
    splits: Mapping[str, Sequence[RawExample]],
    work: pathlib.Path,
    on_bad_example: str,
) -> list[_Shard]:
    """Cuts the splits into shards, the same ones as before if work has begun."""
    keys = {s: "\n".join(raw.key for raw in raws) for s, raws in splits.items()}
    plan = {
        "version": str(builder.version),
        "keys": {s: hashlib.sha256(k.encode()).hexdigest() for s, k in keys.items()},
        "on_bad_example": on_bad_example,
    }
    path = work / _PLAN_FILE
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        prepared.write_json(path, plan)
    elif json.loads(path.read_text(encoding="utf-8")) != plan:
        raise DataError(
            f"{work} holds an unfinished preparation of other files or with another "
            "--on_bad_example; remove it, or run the command as it was."
        )
    shards = []
    for split, raws in splits.items():
        length = max(_SHARD_EXAMPLES, -(-len(raws) // _MAX_SHARDS))
        starts = range(0, len(raws), length)
        shards += [
            _Shard(split, i, len(starts), raws[s : s + length], on_bad_example == "skip")
            for i, s in enumerate(starts)
        ]
    return shards


def _write_shards(
    builder: SegmentationBuilder,
    shards: Sequence[_Shard],
    work: pathlib.Path,
    num_workers: int | None,
    progress: Callable[[str, int, int], None],
) -> dict[str, prepared.SplitRecord]:
    """Writes the shards that are not there yet; returns the counts of each split."""
    totals, done = {}, {}
    for shard in shards:
        totals[shard.split] = totals.get(shard.split, 0) + len(shard.examples)
        done.setdefault(shard.split, 0)
    todo = []
    for shard in shards:
        if _record_path(shard.path(work, builder.name)).is_file():
            done[shard.split] += len(shard.examples)
        else:
            todo.append(shard)
    for split, count in done.items():
        if count:
            progress(split, count, totals[split])

    def report(shard: _Shard) -> None:
        done[shard.split] += len(shard.examples)
        progress(shard.split, done[shard.split], totals[shard.split])

    if num_workers == 0 or len(todo) < 2:
        for shard in todo:
            _write_shard(builder, shard, work)
            report(shard)
    else:
        workers = min(num_workers or os.cpu_count() or 1, len(todo))
        _write_in_processes(builder, todo, work, workers, report)
    records = {split: prepared.SplitRecord() for split in totals}
    for shard in shards:
        records[shard.split].extend(_load_record(shard.path(work, builder.name)))
    return records


def _write_in_processes(builder, todo, work, workers, report) -> None:
    pool = concurrent.futures.ProcessPoolExecutor(
        # Not fork: this process may have threads, of JAX for one.
        workers, mp_context=multiprocessing.get_context("spawn")
    )  # fmt: skip
    try:
        waiting = {pool.submit(_write_shard, builder, shard, work): shard for shard in todo}
        for future in concurrent.futures.as_completed(waiting):
            future.result()
            report(waiting[future])
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            "A process that prepares data was killed, perhaps for want of memory; run "
            "the same command again with fewer --num_workers to go on."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_shard(
    builder: SegmentationBuilder, shard: _Shard, work: pathlib.Path
) -> None:
    """Writes one shard and then, as the sign that it is whole, its counts."""
    path = shard.path(work, builder.name)
    part = path.with_name(path.name + ".part")
    record = prepared.SplitRecord()
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


def _record_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".npz")


def _save_record(path: pathlib.Path, record: prepared.SplitRecord) -> None:
    presence = prepared.Presence.collect(record.counts)
    part = path.with_name(path.name + ".counts.part.npz")
    np.savez(
        part,
        offsets=presence.offsets,
        class_ids=presence.class_ids,
        pixels=presence.pixels,
        totals=[record.num_pixels, record.ignored_pixels],
        skipped=json.dumps(record.skipped),
    )
    part.replace(_record_path(path))


def _load_record(path: pathlib.Path) -> prepared.SplitRecord:
    with np.load(_record_path(path)) as file:
        ends = file["offsets"]
        ids, pixels = file["class_ids"], file["pixels"]
        counts = [
            (ids[a:b], pixels[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)
        ]
        num_pixels, ignored = file["totals"].tolist()
        return prepared.SplitRecord(
            counts, num_pixels, ignored, json.loads(str(file["skipped"]))
        )


def _finish(
    builder: SegmentationBuilder,
    shards: Sequence[_Shard],
    records: Mapping[str, prepared.SplitRecord],
    work: pathlib.Path,
) -> None:
    """Writes what describes the shards, for TFDS and for `Prepared`."""
    lengths, sizes = {}, {}
    for shard in shards:
        path = shard.path(work, builder.name)
        length = len(_load_record(path).counts)
        lengths.setdefault(shard.split, []).append(length)
        sizes[shard.split] = sizes.get(shard.split, 0) + path.stat().st_size
    splits = []
    for split, shard_lengths in lengths.items():
        if not sum(shard_lengths):
            raise DataError(
                f"No example of split {split!r} could be read; the first says: "
                f"{records[split].skipped[0]}"
            )
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=builder.name,
            split=split,
            filetype_suffix="array_record",
        )
        splits.append(
            tfds.core.splits.SplitInfo(
                name=split,
                shard_lengths=shard_lengths,
                num_bytes=sizes[split],
                filename_template=template,
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    builder.info.write_to_directory(work)
    prepared.write_side_files(work, builder.class_info(), records)
    for shard in shards:
        _record_path(shard.path(work, builder.name)).unlink()
    (work / _PLAN_FILE).unlink()
    for part in work.glob("*.part*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
