"""Benchmarks still run; what they measure is not looked at here."""

import pathlib
import types

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from tiny import tiny_config

import mlseg_jax
from benchmarks import (
    autolabel,
    connected_components,
    frameworks,
    lost_things,
    regions_memory,
    selection_levers,
    study_steps,
    throughput,
    touching_signs,
    two_pictures,
)
from configs import mask2former
from input_pipeline.datasets.coco_json import open_panoptic
from input_pipeline.datasets.folder import Folder
from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DatasetInfo
from mlseg_jax.metrics.panoptic_quality import PanopticQuality
from mlseg_jax.models.build import check_config
from mlseg_jax.settings import recipes
from mlseg_jax.tasks.panoptic import _truth


def test_throughput():
    result = throughput.run(tiny_config(), repetitions=1, steps=1)
    assert result["C"] == 20 and 0 <= result["input_wait"] <= 1
    assert result["train_with_input_images_per_second"] > 0


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"
)
def test_regions_memory():
    rows = regions_memory.run((40, 50), num_queries=4, k=3, side=32)
    tasks = [row["task"] for row in rows]
    assert tasks == ["panoptic", "semantic", "instance", "overlay of panoptic"]
    assert all(row["extra MB"] < 400 for row in rows)


def test_step_times_of_the_study():
    seconds = study_steps.measure(["apart"], "toy", repetitions=1)
    assert list(seconds) == ["apart"] and seconds["apart"] > 0


def test_frameworks_are_alike_but_for_what_is_compared():
    args = frameworks.parse_arguments(["--backbone=vit_s16", "--image=64", "--k=20"])
    configs = [frameworks.make_config(args, name, 30) for name in frameworks.RECIPES]
    for config in configs:
        check_config(config)
        assert config.data.crop_size == config.eval.window == (64, 64)
        assert config.model.backbone.embed_dim == 384
    assert {config.model.dtype for config in configs} == {"float32"}
    selecting = [c.selection.k for c in configs if c.selection.name == "top_k"]
    assert selecting == [20] * 4


def test_the_script_of_the_page_on_labels_of_ones_own(tmp_path, monkeypatch):
    """Sure pixels become labels, others are ignored; few of them are no picture."""
    monkeypatch.chdir(tmp_path)
    picture, mask = np.zeros((4, 5, 3), np.uint8), np.ones((4, 5), np.uint8)
    for split in ("train", "val"):
        for kind, array in (("images", picture), ("masks", mask)):
            folder = tmp_path / "labelled" / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(array).save(folder / "true.png")
    (tmp_path / "labelled/classes.txt").write_text("a\nb\nc\n")
    (tmp_path / "unlabelled").mkdir()
    for name in ("sure.jpg", "unsure.jpg"):
        Image.fromarray(picture).save(tmp_path / "unlabelled" / name)
    found = np.full((4, 5), 2, np.uint16)
    sure = np.zeros((1, 4, 5), np.float32)
    sure[:, :2] = 0.95

    def teacher(path, top_labels):
        probabilities = sure if path.name == "sure.jpg" else 0.5 * sure
        return types.SimpleNamespace(
            top_probabilities=probabilities,
            label_map=found,
            class_names=("a", "b", "c"),
        )

    monkeypatch.setattr(mlseg_jax, "load", lambda workdir: teacher)
    exec(autolabel.page_script(), {})
    mixed = Folder("mixed")
    maps = {mixed[i]["name"]: mixed[i]["label_map"] for i in range(len(mixed))}
    assert len(maps) == 2
    (made,) = (x for name, x in maps.items() if "auto_sure" in name)
    np.testing.assert_array_equal(made, [[2] * 5] * 2 + [[-1] * 5] * 2)


def test_connected_segments():
    """Against SciPy's labels: stuff is one, things are pieces, small ones are void."""
    random = np.random.default_rng(0)
    cells = random.integers(-1, 4, (6, 7))
    label_map = np.kron(cells, np.ones((3, 3), int))
    label_map[0, 0] = 3 if label_map[0, 0] != 3 else 2
    is_thing = np.array([False, True, True, True])
    for least in (0, 9, 10):
        found, classes = connected_components.connected_segments(
            label_map, is_thing, least
        )
        expected = set()
        for c in range(4):
            pieces, count = label_map == c, 1
            if is_thing[c]:
                pieces, count = ndimage.label(pieces, np.ones((3, 3)))
            for i in range(1, count + 1):
                mask = pieces == i
                if mask.sum() >= max(least, 1):
                    expected.add((c, mask.tobytes()))
        made = {(c, (found == i).tobytes()) for i, c in classes.items()}
        assert made == expected and len(classes) == len(expected)
        assert set(np.unique(found)) - {0} == set(classes)


def test_qualities_of_one_pass():
    """The truth is perfect, and pieces of its label maps are not where things touch."""
    settings = touching_signs.COMMON | {"data.eval_examples": 3}
    config = mask2former.get_config("dataset=sign_scenes,task=panoptic")
    config.data.update({k[5:]: v for k, v in settings.items() if k.startswith("data.")})
    source = open_dataset(config.data, train=False)
    is_thing = np.asarray(source.info.is_thing, bool)

    def find(example, kind):
        if kind == "pieces":
            return connected_components.connected_segments(
                example["label_map"], is_thing
            )
        classes = {e.segment_id: e.class_id for e in example["segments"]}
        is_there = kind == "truth"
        return example["segment_map"] * is_there, classes if is_there else {}

    perfect, pieces, nothing = connected_components.qualities(
        source, 2, list, find, ("truth", "pieces", "nothing")
    )
    assert perfect["PQ"] == 1 and 0.3 < pieces["PQ"] < 0.9 and nothing["PQ"] == 0


@pytest.mark.parametrize("rival", touching_signs.RECIPES)
def test_rivals_where_signs_touch(rival):
    settings = touching_signs.settings_of(rival, 1, 20, "run")
    config = recipes.load(f"configs/{touching_signs.RECIPES[rival]}", settings)
    check_config(config)
    assert config.seed == 1 and config.data.touching == 0.6
    assert config.model.backbone.get("patch_size", 8) == 8


def test_what_becomes_of_a_thing():
    truth = np.zeros((4, 6), bool)
    truth[1:3, 1:5] = True
    half, most = truth.copy(), truth.copy()
    half[:, 3:] = most[:, 4:] = False
    masks = np.stack([half, ~truth, most])
    np.testing.assert_allclose(lost_things.ious(masks, truth), [0.5, 0.0, 0.75])
    names, right, wrong = np.array([7, 7, 3]), np.array([3]), np.array([7])

    def fate(masks, names, class_id):
        return lost_things.fate(masks, names, most[None], right, truth, class_id)

    assert fate(masks, names, 3) == (True, True, True)
    assert fate(masks, names, 7) == (True, False, False)
    assert fate(masks[:2], names[:2], 7) == (False, False, False)
    assert fate(masks[:0], names[:0], 3) == (False, False, True)
    found = np.empty((0, 4, 6), bool)
    assert lost_things.fate(masks, names, found, wrong[:0], truth, 3)[2] is False
    rows = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    class_ids = np.array([2, 1, 2])
    rare = lost_things.rarer_half(class_ids, np.array([False, True, True, True, True]))
    np.testing.assert_array_equal(rare, [False, False, False])
    rare = lost_things.rarer_half(class_ids, np.array([False, True, True]))
    np.testing.assert_array_equal(rare, [False, True, False])
    alone, sharing, _, of_rare, whole = lost_things.summary(rows, rare, False)
    assert (of_rare["count"], of_rare["mask %"], of_rare["found %"]) == (1, 100, 0)
    assert (alone["count"], sharing["count"], whole["count"]) == (1, 2, 3)
    assert (sharing["mask %"], sharing["name %"], sharing["found %"]) == (50, 0, 0)
    np.testing.assert_allclose(whole["name %"], 50)
    assert lost_things.summary(rows, rare, True)[-1]["name %"] == 100 / 3


def test_levers_select_what_is_allowed_and_thresholds_are_those_of_the_best_f1():
    scores = np.array([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    allowed = np.array([[True, False, True, True], [False] * 4])
    chosen = selection_levers.among(scores, allowed, 2)
    assert chosen.class_ids[0].tolist() == [3, 2] and chosen.valid[0].all()
    # Where none is allowed, the best one is.
    assert chosen.class_ids[1, 0] == 0 and chosen.valid[1].tolist() == [True, False]
    last = selection_levers.among(scores[:, ::-1], allowed, 2)
    assert last.class_ids[1, 0] == 3
    scores = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [0.0, 4.0]])
    present = np.array([[True, False], [True, False], [False, False], [True, False]])
    # The two best alone have an F1 of 0.8, all with a wrong one 6 / 7.
    first, never = selection_levers.best_thresholds(scores, present)
    assert first == 0.0 and never == np.inf
    present[3, 0] = False
    assert selection_levers.best_thresholds(scores, present)[0] == 2.0


class Listed(list):
    """Examples with the classes that they are of."""


def test_two_pictures_and_their_reader(tmp_path):
    """Files that we read as they were meant, and a quality in loops equal to ours."""
    args = two_pictures.parse_arguments(
        ["--data=x", f"--output={tmp_path}", "--size=30x20"]
    )
    assert args.size == (20, 30)
    random = np.random.default_rng(0)
    pictures = [
        {
            "image": np.zeros((40, 60, 3), np.uint8),
            "label_map": random.integers(-1, 3, (4, 6)).repeat(10, 0).repeat(10, 1),
        }
        for _ in range(2)
    ]
    info = DatasetInfo("", ("sky", "car", "bus"), (True,) * 3)
    source = Listed(pictures)
    source.info = info
    count = two_pictures.make_files(source, 2, ("car",), args.size, 0, tmp_path)
    files = "annotations/panoptic_train.json", "annotations/panoptic_train"
    true = two_pictures.read_panoptic(*(tmp_path / name for name in files))
    assert count == sum(len(categories) for _, categories in true.values())
    assert two_pictures.panoptic_quality(true, true) == 1.0
    ours, found = open_panoptic(tmp_path, "train"), {}
    state = PanopticQuality.empty(np.asarray(ours.info.is_thing))
    for i, (ids, categories) in enumerate(true.values()):
        expected = pictures[i]["label_map"][::2, ::2]
        np.testing.assert_array_equal(ours[i]["label_map"], expected)
        moved = np.roll(ids, 2, 1)
        own = {j: random.choice([c, 1]) for j, c in categories.items()}
        found[i + 1] = moved, own
        classes = {j: int(c) - 1 for j, c in own.items()}
        state, _ = state.update(_truth(ours[i]), moved, classes)
    quality = two_pictures.panoptic_quality(true, found)
    assert 0 < quality == pytest.approx(state.compute()["PQ"])
    with pytest.raises(SystemExit, match="no class 'cat'"):
        two_pictures.make_files(source, 2, ("cat",), args.size, 0, tmp_path)
    train, evaluate, predict = two_pictures.commands(tmp_path, args.size, 2, 9, 3)
    assert [command[2] for command in (train, evaluate, predict)] == [
        "train", "evaluate", "predict",
    ]  # fmt: skip
    config = mask2former.get_config(two_pictures.RECIPE.partition(":")[2])
    config.update_from_flattened_dict(two_pictures.SETTINGS)
    check_config(config)
