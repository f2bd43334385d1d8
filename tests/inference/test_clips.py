"""Clips of a video: where they begin, and what their labels are selected by."""

import jax
import numpy as np
import pytest
from fake_model import POLICY, C, FakeModel, K, fake_engine, make_settings
from shrink import (
    random_parameters,
    segmenter_config,
    use_tiny_backbone,
    use_tiny_decoder,
)

from mlseg_jax.inference.clips import Clips, change
from mlseg_jax.inference.engine import Engine
from mlseg_jax.label_selection import Selection, SelectionPolicy
from mlseg_jax.models.build import FunctionalModel


def scores(*scenes, seed=0):
    """Noisy scores [T C] of scenes of so many frames with other labels each."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, count in enumerate(scenes):
        base = np.where(np.arange(C) // 3 == i % 3, 3.0, -4.0)
        rows += [base + rng.normal(0, 0.4, C) for _ in range(count)]
    return np.asarray(rows, np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("kind", ["maximum", "mean", "running"])
def test_clips_end_with_the_scene_or_by_length(kind):
    settings = make_settings(clip_length=6, clip_scores=kind, clip_change=0.6)
    clips = Clips(K, settings, first=3)
    rows = scores(3, 8, 2)
    shared = clips.shared(rows)
    numbers = [3, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 6, 6]
    assert clips.numbers == numbers
    for number in set(numbers):
        own = np.flatnonzero(np.asarray(numbers) == number)
        for place, frame in enumerate(own):
            seen = rows[own[: place + 1]] if kind == "running" else rows[own]
            if kind == "maximum":
                expected = seen.max(axis=0)
            else:
                expected = sigmoid(seen).mean(axis=0)
                expected = np.log(expected / (1 - expected))
            np.testing.assert_allclose(shared[frame], expected, atol=1e-5)


def test_running_clips_go_on_between_calls():
    rows = scores(3, 8, 2)
    settings = make_settings(clip_length=6, clip_scores="running", clip_change=0.6)
    whole = Clips(K, settings).shared(rows)
    clips = Clips(K, settings, read_ahead=1)
    single = np.concatenate([clips.shared(row[None]) for row in rows])
    np.testing.assert_allclose(single, whole, atol=1e-5)
    # Others are a clip of their own, so that a video can be taken up between them.
    clips = Clips(K, make_settings(clip_length=6), read_ahead=2)
    numbers = [
        clips.shared(rows[i : i + 2]) is not None and clips.numbers for i in (0, 4)
    ]
    assert numbers == [[0, 0], [1, 1]]


def test_change_of_the_best_labels():
    same = np.asarray([0.9, 0.8, 0.1, 0.0])
    assert change(same, same, 2) == 0
    assert change(same, np.asarray([0.0, 0.0, 0.0, 0.9]), 2) == 1
    other = np.asarray([0.9, 0.2, 0.6, 0.0])  # 0.9 + 0.2 + 0.1 of 0.9 + 0.8 + 0.6
    assert change(same, other, 2) == pytest.approx(1 - 1.2 / 2.3)
    unlikely = np.concatenate([same, np.full(5000, 0.01)])
    assert change(unlikely, np.roll(unlikely, 2), 2) == pytest.approx(1.0, abs=0.2)


def test_frames_of_a_clip_share_their_labels():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(4)]
    images += [255 - image // 4 for image in images]
    settings = make_settings(clip_length=8, clip_change=0.9, clip_scores="mean")
    model = FakeModel()
    engine = fake_engine(model, settings)
    clips = Clips(K, settings)
    (results,) = engine.segment(images, [(POLICY, None)], scope=clips)
    own = np.concatenate([segmented.scores for segmented in results])
    assert clips.numbers == [0] * 8
    mean = sigmoid(own).mean(axis=0)
    expected = set(np.argsort(-mean)[:K].tolist())
    for segmented in results:
        assert set(np.asarray(segmented.selection.class_ids)[0].tolist()) == expected
        assert set(np.unique(segmented.label_maps())) <= expected
    # Without clips each picture is one.
    settings.selection_scope = "per_clip"
    (alone,) = fake_engine(model, settings).segment(images, [(POLICY, None)])
    for segmented, row in zip(alone, own, strict=True):
        found = set(np.asarray(segmented.selection.class_ids)[0].tolist())
        assert found == set(np.argsort(-row)[:K].tolist())


def test_classes_join_the_encoder_of_every_frame(quick_compiles):
    """Without a decoder: as if each frame had been told the labels of its clip."""
    config = segmenter_config()
    more = {"positions": "rotary", "key_bias": False, "num_registers": 2}
    use_tiny_backbone(config, "vit", layer_scale=1.0, depth=3, **more)
    use_tiny_decoder(config, "encoder_only", depth=2)
    size = {"window": (20, 32), "stride": (20, 32), "batch_size": 2}
    settings = make_settings(clip_change=1.0, **size)
    model = FunctionalModel.build(config, C)
    engine = Engine(model, jax.device_put(random_parameters(model)), settings)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(4)]
    (results,) = engine.segment(images, [(POLICY, None)], scope=Clips(K, settings))
    ids = np.concatenate([x.selection.class_ids for x in results])
    assert len(ids) == 4 and np.all(ids == ids[0])
    told = SelectionPolicy("given", K)
    grids = np.concatenate([x.grids[0] for x in results])
    for i, image in enumerate(images):
        given = Selection(ids[i : i + 1], None, C)
        ((alone,),) = engine.segment([image], [(told, given)])
        np.testing.assert_allclose(grids[i], alone.grids[0][0], atol=1e-5)
    assert np.ptp(grids, axis=0).max() > 0.1
