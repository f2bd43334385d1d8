"""Repeat factors, counting, groups of classes, and examples that are skipped."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from input_pipeline.datasets.bad_examples import MAX_TRIES, Skips, drop_bad, replace_bad
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.pipeline import evaluation_examples, train_batches
from input_pipeline.preparation.class_statistics import Presence
from input_pipeline.resample import repeat_factors, repeated_indices
from mlseg_jax.doctor.label_statistics import image_curve, least_k, measure, pixel_curve
from mlseg_jax.errors import UserError
from mlseg_jax.metrics import class_groups
from mlseg_jax.models.build import check_config
from mlseg_jax.training import long_tail


def presence_of(*examples):
    """Each example is {class id: pixels}."""
    return Presence.collect(
        [(np.array(list(e), int), np.array(list(e.values()), int)) for e in examples]
    )


def test_repeat_factors_are_those_of_lvis():
    examples = [{0: 5, 1: 1}] * 2 + [{0: 9}] * 97 + [{}]
    factors = repeat_factors(presence_of(*examples), 0.5)
    expected = [np.sqrt(0.5 / 0.02)] * 2 + [1.0] * 98
    np.testing.assert_allclose(factors, expected)
    assert (repeat_factors(presence_of(*examples), 0.01) == 1).all()


def test_repeated_indices_add_up_and_repeat():
    factors = np.random.default_rng(0).uniform(1, 3, 1000)
    indices = repeated_indices(factors, seed=3)
    counts = np.bincount(indices, minlength=1000)
    assert ((counts == np.floor(factors)) | (counts == np.ceil(factors))).all()
    assert abs(len(indices) - factors.sum()) <= 1
    np.testing.assert_array_equal(indices, repeated_indices(factors, seed=3))
    np.testing.assert_array_equal(repeated_indices(np.ones(7), seed=5), np.arange(7))


def test_groups_are_terciles():
    images = np.array([5, 900, 0, 40, 41, 3, 1000])
    groups = class_groups.frequency_groups(images)
    assert {k: np.flatnonzero(v).tolist() for k, v in groups.items()} == {
        "frequent": [1, 4, 6], "common": [0, 3], "rare": [2, 5],
    }  # fmt: skip
    iou = np.array([0.1, 0.9, np.nan, 0.3, 0.5, 0.2, 0.7])
    scores = class_groups.mean_iou_by_group(iou, images)
    assert scores == pytest.approx(
        {"mIoU_frequent": 0.7, "mIoU_common": 0.2, "mIoU_rare": 0.2}
    )


def test_curves_of_figure_2():
    presence = presence_of({0: 60, 1: 39, 2: 1}, {1: 100}, {})
    np.testing.assert_allclose(image_curve(presence), [1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(pixel_curve(presence), [0, 0.8, 0.995, 1])
    assert least_k(pixel_curve(presence), 0.99) == 2
    assert least_k(pixel_curve(presence), 0.999) == 3
    assert least_k(image_curve(presence), 0.5) == 1


def test_statistics_count_what_was_not_prepared():
    config = tiny_config()
    train_part, val_part = (split.as_json() for split in measure(config))
    source = open_dataset(config.data, train=True)
    labels = [set(np.unique(source[i]["label_map"])) for i in range(len(source))]
    expected = [sum(c in found for found in labels) for c in range(20)]
    assert train_part["class_examples"] == expected
    assert val_part["num_examples"] == 6


def test_counting_once_and_what_follows(tmp_path):
    """`test_configs` trains and evaluates with all switches on."""
    config = tiny_config({"data.repeat_factor": 0.3})
    source = open_dataset(config.data, train=True)
    workdir = str(tmp_path)
    assert long_tail.training_presence(config, source, workdir, count=False) is None
    presence = long_tail.training_presence(config, source, workdir, count=True)
    stored = long_tail.training_presence(config, source, workdir, count=False)
    np.testing.assert_array_equal(stored.class_ids, presence.class_ids)
    resampled = long_tail.resample(config, source, stored)
    factors = repeat_factors(presence, 0.3)
    assert abs(len(resampled) - factors.sum()) <= 1
    names = [resampled[i]["name"] for i in range(len(resampled))]
    most = int(np.argmax(factors))
    assert names.count(source[most]["name"]) >= int(factors[most])
    # Half a file, as a full disk leaves it, is no file.
    path = tmp_path / long_tail.PRESENCE_FILE
    for half in (path.read_bytes()[: path.stat().st_size // 2], b""):
        path.write_bytes(half)
        damaged = long_tail.training_presence(config, source, workdir, count=False)
        assert damaged is None
    long_tail.training_presence(config, source, workdir, count=True)
    # Counts of other data are not taken for these.
    other = open_dataset(tiny_config({"data.train_examples": 5}).data, train=True)
    assert long_tail.training_presence(config, other, workdir, count=False) is None
    with pytest.raises(UserError, match="data.repeat_factor is -1"):
        check_config(tiny_config({"data.repeat_factor": -1.0}))


def test_counts_are_of_the_masks_as_they_are_now(tmp_path):
    folder, workdir = tmp_path / "data", tmp_path / "data" / "run"
    for name in ("images", "masks", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("a\nb\n")
    (folder / "train.txt").write_text("x\n")
    picture = Image.fromarray(np.zeros((4, 4), np.uint8))
    picture.save(folder / "images" / "x.png")
    picture.save(folder / "masks" / "x.png")
    named = {"data.name": "folder", "data.path": str(folder), "data.num_classes": 2}
    config = tiny_config(named)

    def found(count, config=config):
        source = open_dataset(config.data, train=True)
        presence = long_tail.training_presence(
            config, source, str(workdir), count=count
        )
        return presence and presence.class_ids.tolist()

    assert found(count=True) == [0] == found(count=False)
    # Painted anew: as many pictures as before, of classes with the same names.
    Image.fromarray(np.ones((4, 4), np.uint8)).save(folder / "masks" / "x.png")
    # Good enough for a report, not for training.
    assert found(count=False) == [0]
    assert found(count=True) == [1] == found(count=False)
    # Or other masks of the same pictures.
    (folder / "masks").rename(folder / "labels")
    shutil.copytree(folder / "labels", folder / "masks")
    assert found(count=True) == [1]
    other = tiny_config(named | {"data.mask_folder": "labels"})
    assert found(count=False, config=other) is None


class Faulty:
    """Examples 3, 7 and 8 of ten cannot be read."""

    info = DatasetInfo("faulty", ("a",), (False,))
    bad = {3: "unreadable", 7: "size", 8: "unreadable"}

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"File {index} is bad.", kind=self.bad[index])
        image = np.full((4, 4, 3), index, np.uint8)
        return {"image": image, "label_map": np.zeros((4, 4), np.int32), "name": "x"}


def keep(example, rng):
    return example


def stream(start, count, num_threads):
    batches = train_batches(
        replace_bad(Faulty(), "skip"),
        seed=0,
        batch_size=2,
        augment=keep,
        start_example=start,
        num_threads=num_threads,
    )
    found = [next(batches)["image"][:, 0, 0, 0].tolist() for _ in range(count)]
    batches.close()
    return found


def test_others_stand_in_for_bad_examples_in_training():
    whole = stream(0, 20, num_threads=0)
    assert not {3, 7, 8} & set(np.ravel(whole).tolist())
    assert stream(0, 20, num_threads=3) == whole
    assert stream(16, 12, num_threads=1) == whole[8:]


def test_worker_processes_give_the_same_batches_and_their_skips_are_counted():
    counts = []
    for num_workers in (0, 2):
        skips = Skips()
        batches = train_batches(
            replace_bad(Faulty(), "skip"),
            seed=0,
            batch_size=2,
            augment=keep,
            num_threads=1,
            num_workers=num_workers,
            skips=skips,
        )
        found = [next(batches)["image"][:, 0, 0, 0].tolist() for _ in range(10)]
        batches.close()
        counts.append((found, skips.counts))
    assert counts[0] == counts[1]
    assert counts[0][1] == {"unreadable": 4, "size": 2}


class Lines(logging.Handler):
    """The lines of one logger, whatever other handlers a program has set up."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_bad_examples_are_dropped_in_evaluation_and_counted():
    skips, heard, logger = Skips(), Lines(), logging.getLogger("mlseg_jax.data")
    logger.addHandler(heard)
    try:
        examples = evaluation_examples(drop_bad(Faulty(), "skip", skips))
        found = [int(example["image"][0, 0, 0]) for example in examples]
        skips.log("evaluation")
    finally:
        logger.removeHandler(heard)
    assert found == [0, 1, 2, 4, 5, 6, 9]
    assert skips.counts == {"unreadable": 2, "size": 1}
    assert len(heard.lines) == 3  # One a kind, and the sum.
    assert heard.lines[-1] == "evaluation: skipped 2 unreadable, 1 size"


def test_a_source_of_bad_examples_only_is_an_error_and_no_hang():
    source = Faulty()
    source.bad = dict.fromkeys(range(10), "unreadable")
    with pytest.raises(DataError, match=f"Example 2 and {MAX_TRIES} others"):
        replace_bad(source, "skip")[2]
    with pytest.raises(DataError, match="is 'ignore'; choose one of fail, skip"):
        drop_bad(source, "ignore")
    with pytest.raises(DataError, match="File 3 is bad"):
        list(evaluation_examples(drop_bad(Faulty(), "fail")))
