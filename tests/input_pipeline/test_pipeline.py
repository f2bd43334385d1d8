"""The order of data as a pure function of (seed, global example index)."""

import itertools
import threading

import numpy as np
import pytest

from input_pipeline import pipeline
from input_pipeline.info import DataError, DatasetInfo


class _Source:
    """Examples that are filled with their own index."""

    info = DatasetInfo("fake", ("a", "b"), (False, False))

    def __init__(self, length=13, bad=None):
        self._length, self._bad = length, bad

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        assert 0 <= index < self._length
        if index == self._bad:
            raise DataError(f"Mask {index}.png is wrong; mend it.")
        return {
            "image": np.full((2, 3, 3), index, np.uint8),
            "label_map": np.full((2, 3), index, np.int32),
            "name": str(index),
        }


def _augment(example, rng):
    """Writes the first draw into the label map, so that tests see it."""
    draw = np.full((2, 3), rng.integers(2**31), np.int32)
    return {**example, "label_map": draw}


def _pairs(num_batches, source=None, **overrides):
    """Returns [batch][example] of (index, first draw) of one process."""
    arguments = {"seed": 7, "batch_size": 4, "augment": _augment} | overrides
    batches = pipeline.train_batches(source or _Source(), **arguments)
    result = []
    for batch in itertools.islice(batches, num_batches):
        assert sorted(batch) == ["image", "label_map"]
        assert batch["image"].dtype == np.uint8
        assert batch["label_map"].dtype == np.int32
        assert batch["image"].shape[1:] == (2, 3, 3)
        indices, draws = batch["image"][:, 0, 0, 0], batch["label_map"][:, 0, 0]
        result.append(list(zip(indices.tolist(), draws.tolist(), strict=True)))
    batches.close()
    return result


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 3], [1], [2]]])
@pytest.mark.parametrize("start_example", [0, 8])
def test_processes_together_see_the_same(shares, start_example):
    # 8 batches of 4 from 13 examples cross two ends of an epoch.
    alone = _pairs(8, start_example=start_example)
    for rows in shares:
        part = _pairs(8, start_example=start_example, rows=rows)
        assert part == [[batch[row] for row in rows] for batch in alone]


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_resuming_equals_continuing(step):
    through = _pairs(10)
    assert _pairs(10 - step, start_example=4 * step) == through[step:]


def test_resuming_late_is_quick_and_exact():
    late = 10_000_000 * 4
    assert _pairs(2, start_example=late)[1] == _pairs(1, start_example=late + 4)[0]


def test_resuming_with_another_batch_size():
    flat = list(itertools.chain.from_iterable(_pairs(6)))
    resumed = _pairs(1, batch_size=16, start_example=8)[0]
    assert resumed == flat[8:24]


@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 0), (1, 1), (4, 8)])
def test_threads_do_not_change_the_data(num_threads, prefetch):
    assert _pairs(8, num_threads=num_threads, prefetch=prefetch) == _pairs(8)


def test_every_epoch_has_all_examples_in_a_new_order():
    flat = list(itertools.chain.from_iterable(_pairs(13)))  # Four epochs.
    epochs = [[index for index, _ in flat[i : i + 13]] for i in range(0, 52, 13)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_every_epoch_augments_anew():
    flat = list(itertools.chain.from_iterable(_pairs(13)))
    assert len({draw for _, draw in flat}) == 52
    # Even a single example, whose order cannot change, is augmented anew.
    draws = [draw for batch in _pairs(3, source=_Source(1)) for _, draw in batch]
    assert len(set(draws)) == 12


def test_seeds_differ():
    flat = [
        [p for batch in _pairs(13, seed=seed) for p in batch] for seed in (0, 1, 2**40)
    ]
    assert flat[0] != flat[1] != flat[2]
    # Not even one epoch apart, as grain's own seeds would be.
    order = [[index for index, _ in pairs] for pairs in flat]
    assert order[0][13:26] != order[1][:13]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_error_of_the_source_reaches_the_caller(num_threads):
    batches = pipeline.train_batches(
        _Source(bad=5), seed=0, batch_size=4, augment=_augment, num_threads=num_threads
    )
    with pytest.raises(DataError) as error:
        list(itertools.islice(batches, 5))
    assert str(error.value) == "Mask 5.png is wrong; mend it."
    assert not getattr(error.value, "__notes__", [])
    assert error.value.__cause__ is None

    examples = pipeline.evaluation_examples(_Source(bad=5), num_threads=num_threads)
    seen = []
    with pytest.raises(DataError, match="^Mask 5.png is wrong; mend it.$"):
        seen.extend(example["name"] for example in examples)
    names = [e["name"] for e in pipeline.evaluation_examples(_Source(bad=5), limit=5)]
    assert names == ["0", "1", "2", "3", "4"]


def test_arguments_are_checked_at_once():
    with pytest.raises(DataError, match="has no examples"):
        pipeline.train_batches(_Source(0), seed=0, batch_size=1, augment=_augment)


@pytest.mark.parametrize("process_count", [1, 2, 4, 16])
@pytest.mark.parametrize(("start", "limit"), [(0, None), (3, None), (0, 5), (9, 99)])
def test_evaluation_examples(process_count, start, limit):
    expected = list(range(13))[start:][:limit]
    seen = [
        [
            int(example["name"])
            for example in pipeline.evaluation_examples(
                _Source(),
                process_index=p,
                process_count=process_count,
                start=start,
                limit=limit,
            )
        ]
        for p in range(process_count)
    ]
    assert seen == [expected[p::process_count] for p in range(process_count)]


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (256, 256), (257, 129), (512, 256), (1000, 250)]
)
def test_what_is_read_beforehand_is_spread_and_not_more_than_said(size, count):
    class Noted(list):
        def __getitem__(self, index):
            read.append(index)
            return index

    read = []
    pipeline.read_some(Noted(range(size)), num_threads=0)
    assert len(read) == count
    assert not read or size - max(read) <= -(-size // 256)


def test_close_stops_the_threads():
    batches = pipeline.train_batches(
        _Source(), seed=0, batch_size=4, augment=_augment, num_threads=3
    )
    before = {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}
    next(batches)
    threads = set(threading.enumerate()) - before
    threads = {t for t in threads if t.name.startswith("grain-prefetch")}
    assert threads
    batches.close()
    for thread in threads:
        thread.join(timeout=5)
        assert not thread.is_alive()
