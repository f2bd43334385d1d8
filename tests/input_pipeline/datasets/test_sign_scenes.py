"""SignScenes: determinism, agreement of the maps, coverage of the classes, clips."""

import concurrent.futures
import pickle
import time

import cv2
import numpy as np
import pytest

from input_pipeline.datasets import sign_textures
from input_pipeline.datasets.sign_scenes import SignScenes
from input_pipeline.info import DataError


@pytest.fixture(scope="module")
def scenes():
    return SignScenes()


@pytest.fixture(scope="module")
def examples(scenes):
    return [scenes[i] for i in range(200)]


def assert_examples_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_examples_keep_the_contract(scenes, examples):
    num_stuff = scenes.info.is_thing.index(True)
    for index, example in enumerate(examples):
        assert example["name"] == f"sign_scenes_train_{index:06d}"
        assert example["image"].shape == (96, 96, 3)
        assert example["image"].dtype == np.uint8
        for key in ("label_map", "instance_map"):
            assert example[key].shape == (96, 96)
            assert example[key].dtype == np.int32
        labels = np.unique(example["label_map"])
        assert labels[0] >= 0
        assert labels[-1] < 40
        assert 3 <= len(labels) <= 10
        assert labels[0] < num_stuff <= labels[-1]  # Both stuff and things.


def test_twins_are_two_segments_of_one_component(scenes):
    def merged(touching):
        """Signs that share a component of their class with another one."""
        count = total = 0
        for index in range(30):
            example = SignScenes(touching=touching)[index]
            instances = example["instance_map"]
            for label in np.unique(example["label_map"][instances > 0]):
                mask = np.uint8(example["label_map"] == label)
                _, components = cv2.connectedComponents(mask)
                for each in range(1, components.max() + 1):
                    ids = np.unique(instances[components == each])
                    count += len(ids) * (len(ids) > 1)
            total += instances.max()
        return count / total

    assert merged(0.0) < 0.1 < 0.8 < merged(1.0)
    with pytest.raises(DataError, match="share from 0 to 1"):
        SignScenes(touching=1.5)


def test_instances_agree_with_labels(scenes, examples):
    is_thing = np.array(scenes.info.is_thing)
    num_repeats = 0
    for example in examples:
        label_map, instance_map = example["label_map"], example["instance_map"]
        np.testing.assert_array_equal(is_thing[label_map], instance_map > 0)
        ids, areas = np.unique(instance_map[instance_map > 0], return_counts=True)
        np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))
        assert areas.min() > 0.01 * label_map.size  # Big enough to see.
        classes = [np.unique(label_map[instance_map == i]) for i in ids]
        assert all(len(x) == 1 for x in classes)
        num_repeats += len(np.unique(classes)) < len(classes)
    assert num_repeats > 0


def test_the_picture_shows_what_the_label_map_says(examples):
    # A sign differs from the ground just outside: its rim is nearly white or black.
    steps = []
    for example in examples[:50]:
        gray = example["image"].mean(axis=-1)
        is_edge = np.diff(example["instance_map"], axis=1) != 0
        steps.append(
            [np.abs(np.diff(gray, axis=1))[x].mean() for x in (is_edge, ~is_edge)]
        )
    at_edges, elsewhere = np.mean(steps, axis=0)
    assert at_edges > 2 * elsewhere


def test_order_thread_and_process_do_not_matter(scenes, examples):
    order = np.random.default_rng(0).permutation(60)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for index, example in zip(
            order, pool.map(scenes.__getitem__, order), strict=True
        ):
            assert_examples_equal(example, examples[index])
    data = pickle.dumps(scenes)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.info == scenes.info
    assert_examples_equal(copy[7], examples[7])


def test_values_stay_the_same_for_ever(examples):
    # Published scores depend on these scenes: change them knowingly or not at all.
    label_maps = np.stack([x["label_map"] for x in examples[:4]])
    assert [len(np.unique(x)) for x in label_maps] == [7, 4, 6, 9]
    np.testing.assert_allclose(
        label_maps.mean(axis=(1, 2)), [10.05, 8.77, 6.9, 10.0], atol=0.05
    )


def test_splits_and_seeds_differ_in_scenes_not_in_classes(scenes, examples):
    others = [SignScenes(split=split) for split in ("val", "test")]
    assert np.any(others[0][0]["label_map"] != others[1][0]["label_map"])
    for other in (*others, SignScenes(seed=1)):
        assert other.info == scenes.info
        for index in range(5):
            assert np.any(other[index]["label_map"] != examples[index]["label_map"])


def test_classes_are_long_tailed_and_all_appear():
    source = SignScenes(image_size=48)
    counts = np.zeros(40, int)
    for index in range(800):
        counts[np.unique(source[index]["label_map"])] += 1
    assert counts.min() >= 5
    things = np.sort(counts[np.array(source.info.is_thing)])
    assert things[-4:].mean() > 3 * things[:4].mean()


def test_most_classes_is_quick_and_has_unique_names():
    start = time.process_time()
    source = SignScenes(num_classes=1284)
    assert time.process_time() - start < 5
    assert source.info.num_classes == len(set(source.info.class_names)) == 1284
    labels = np.concatenate([np.unique(source[i]["label_map"]) for i in range(100)])
    assert labels.max() < 1284
    assert len(np.unique(labels)) > 200


@pytest.mark.parametrize("num_classes", [20, 57, 150, 600])
def test_any_number_of_classes(num_classes):
    source = SignScenes(num_classes=num_classes, image_size=(48, 80))
    assert len(set(source.info.class_names)) == num_classes
    assert sum(source.info.is_thing) == num_classes - min(
        max(round(num_classes / 5), 5), 100
    )
    for index in range(20):
        example = source[index]
        assert example["image"].shape == (48, 80, 3)
        assert 3 <= len(np.unique(example["label_map"])) <= 10


def test_readable_names(scenes):
    names = scenes.info.class_names
    assert "red stripes" in names
    assert "sign A" in names
    assert (
        "sign GREEK CAPITAL LETTER OMEGA"
        in SignScenes(num_classes=150).info.class_names
    )


def test_clip_moves_and_keeps_tracks(scenes, examples):
    clip = scenes.clip(3, 12)
    assert clip["image"].shape == (12, 96, 96, 3)
    assert clip["instance_map"].shape == clip["label_map"].shape == (12, 96, 96)
    still = {k: v if k == "name" else v[0] for k, v in clip.items()}
    assert_examples_equal(still, examples[3])
    label_map, instance_map = clip["label_map"], clip["instance_map"]
    for i in np.unique(instance_map[instance_map > 0]):
        assert len(np.unique(label_map[instance_map == i])) == 1
        centers = [np.argwhere(x == i).mean(axis=0) for x in instance_map if i in x]
        assert np.abs(np.diff(centers, axis=0)).max() < 10  # Pixels: smooth.
    changed = [
        np.mean(a != b) for a, b in zip(instance_map, instance_map[1:], strict=False)
    ]
    assert min(changed) > 0
    assert max(changed) < 0.3
    is_ground = (instance_map == 0).all(axis=0)
    assert np.all(label_map[:, is_ground] == label_map[0, is_ground])
    assert_examples_equal(
        {k: v[:5] for k, v in clip.items() if k != "name"},
        {k: v for k, v in scenes.clip(3, 5).items() if k != "name"},
    )


def test_errors_say_what_to_do(scenes):
    for arguments, message in (
        ({"num_classes": 19}, "num_classes=19.*20 to 1284"),
        ({"num_classes": 1285}, "num_classes=1285.*20 to 1284"),
        ({"split": "tests"}, "split='tests'.*'train', 'val', 'test'"),
        ({"image_size": 31}, "image_size=.*31.*at least 32"),
        ({"image_size": (96, 96, 3)}, "image_size=.*at least 32"),
        ({"num_examples": 0}, "num_examples=0.*at least 1"),
        ({"seed": -1}, "seed=-1.*at least 0"),
    ):
        with pytest.raises(DataError, match=message):
            SignScenes(**arguments)
    for index in (-1, 2000):
        with pytest.raises(IndexError, match=f"index {index}; use 0..1999"):
            scenes[index]
    with pytest.raises(DataError, match="num_frames=0"):
        scenes.clip(0, 0)


def plain_background(rng, stuff_ids, image_size):
    """As scenes were first drawn: every texture everywhere, nearer ones on top."""
    y, x = np.indices(image_size, np.float32) / np.float32(min(image_size))
    nearest = np.full(image_size, np.inf, np.float32)
    background = np.zeros((*image_size, 3), np.float32)
    regions = np.zeros(image_size, np.int32)
    for class_id in stuff_ids:
        center = rng.random(2, np.float32) * (y[-1, -1], x[-1, -1])
        distance = (y - center[0]) ** 2 + (x - center[1]) ** 2
        distance += 0.5 * sign_textures.smooth_noise(rng, image_size, 4)
        angle, shift = rng.uniform(-0.3, 0.3), rng.uniform(0, 10, 2)
        turn = 8 * rng.uniform(0.85, 1.2) * np.exp(1j * angle)
        u = np.float32(turn.real * x + turn.imag * y + shift[0])
        v = np.float32(turn.real * y - turn.imag * x + shift[1])
        texture, colour = sign_textures.STUFF[class_id]
        colour = np.float32(sign_textures.COLOURS[colour]) * rng.uniform(0.92, 1.08)
        dark, pale = 0.62 * colour + 12, 0.5 * colour + 118
        inside, noise = distance < nearest, None
        if texture in sign_textures.NOISES:
            cells = sign_textures.NOISES[texture]
            noise = sign_textures.smooth_noise(rng, image_size, cells)
        tone = sign_textures.TEXTURES[texture](u, v, noise)
        tone = np.float32(tone[inside])[:, None]
        background[inside] = dark + tone * (pale - dark)
        regions[inside], nearest[inside] = class_id, distance[inside]
    return background, regions


def test_backgrounds_are_the_same_to_the_bit_as_drawn_plainly():
    """Each texture comes up, in regions that others cover in part, or wholly."""
    for seed in range(20):
        ids = np.random.default_rng(seed).permutation(10)[:3] + 10 * (seed % 3)
        rngs = np.random.default_rng(seed), np.random.default_rng(seed)
        ours = sign_textures.draw_background(rngs[0], ids, (37, 64))
        plain = plain_background(rngs[1], ids, (37, 64))
        for mine, theirs in zip(ours, plain, strict=True):
            assert mine.tobytes() == theirs.tobytes()
        assert rngs[0].random() == rngs[1].random()
