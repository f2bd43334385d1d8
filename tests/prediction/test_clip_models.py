"""A model of clips that runs: against its pictures, in chunks, and after a kill."""

import functools
import json
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from shrink import random_parameters
from tiny_regions import CLASSES, SIDE, region_config
from tiny_videos import frames

from input_pipeline.files.video import open_video
from input_pipeline.info import DatasetInfo
from mlseg_jax.distributed.sharding import AXES
from mlseg_jax.inference.engine import Engine
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.prediction import video as predicting
from mlseg_jax.prediction.clip_pictures import ClipPictures
from mlseg_jax.prediction.segmenter import Segmenter
from mlseg_jax.tasks import instance
from mlseg_jax.tasks.engines import evaluation_policy, evaluation_settings
from mlseg_jax.tasks.video_evaluation import make_clip_engine

pytestmark = pytest.mark.usefixtures("quick_compiles")

INFO = DatasetInfo(
    "clips", tuple(f"label {i}" for i in range(CLASSES)), (True,) * CLASSES
)
PICTURES = [picture[:SIDE, :SIDE] for picture in frames(5)]


@pytest.fixture(scope="module")
def clips():
    """A configuration of chunks of two frames, an untrained model, and its engine."""
    config = region_config(task="video_instance")
    with config.unlocked():
        config.eval.update(num_frames=2, selection_scope="per_image", track_score=0.0)
    model = FunctionalModel.build(config, CLASSES)
    parameters = {k: jnp.asarray(v) for k, v in random_parameters(model).items()}
    return config, model, parameters, make_clip_engine(config, model, parameters)


def test_a_clip_of_one_frame_is_a_picture(clips):
    config, model, parameters, engine = clips
    policies = [(evaluation_policy(config, CLASSES), None)]
    pictures = Engine(model, parameters, evaluation_settings(config))
    ((expected,),) = pictures.segment(PICTURES[:1], policies)
    engine.begin()
    (clip,) = engine.segment(PICTURES[:1], policies)
    (found,) = clip.frames
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    ((*_, ours),), ((*_, theirs),) = found.score_tiles(), expected.score_tiles()
    # Masks of clips are kept in 16 bits.
    np.testing.assert_allclose(ours, theirs, atol=5e-4)
    assert np.isfinite(ours).all() and np.ptp(theirs) > 1e-3
    assert clip.queries.shape == (8, 16)


def test_frames_are_divided_among_devices(clips):
    config, model, parameters, engine = clips
    devices = np.asarray(jax.devices()[:2]).reshape(2, 1)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)
    parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
    found = []
    for each in (engine, make_clip_engine(config, model, parameters, mesh)):
        each.begin()
        (clip,) = each.segment(
            PICTURES[:2], [(evaluation_policy(config, CLASSES), None)]
        )
        masks = clip.frames[0].only_window().masks.features
        found.append((np.asarray(masks, np.float32), clip.queries))
    assert masks.sharding.spec == PartitionSpec("data")
    (expected, queries), (divided, same) = found
    np.testing.assert_allclose(divided, expected, atol=2e-3)
    np.testing.assert_allclose(same, queries, atol=1e-4)


def test_killed_between_chunks(clips, tmp_path, monkeypatch):
    """Labels by the scores of the chunks before, and queries by theirs, go on."""
    config, model, _, engine = clips
    find = functools.partial(instance.find_segments, settings=config.eval, info=INFO)
    policy = evaluation_policy(config, CLASSES)
    pictures = ClipPictures(engine, model.num_queries)
    segmenter = Segmenter(pictures, INFO, policy, find_segments=find)
    assert "eval.num_frames" in segmenter.memory_advice
    folder, output = tmp_path / "frames", epath.Path(tmp_path / "killed")
    folder.mkdir()
    for i, picture in enumerate(PICTURES):
        # The first two are another scene.
        picture = picture if i > 1 else 255 - picture
        cv2.imwrite(str(folder / f"{i}.png"), picture[..., ::-1])

    def write(place):
        return predicting.write_video(segmenter, open_video(folder), place, {}, "")

    assert write(whole := epath.Path(tmp_path / "whole")).num_frames == 5
    usual = predicting.write_label_map

    def killed(path, *arguments):
        if path.name == "000003.png":
            raise KeyboardInterrupt
        usual(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predicting, "write_label_map", killed)
        write(output)
    record = json.loads((output / "video.json").read_text())
    assert (record["following"], record["memory"]) == (2, "memory_2.npz")
    engine.begin()
    (clip,) = engine.segment([255 - p for p in PICTURES[:2]], [(policy, None)])
    with np.load(output / "memory_2.npz") as memory:
        np.testing.assert_array_equal(memory["best"], clip.scores)
        np.testing.assert_array_equal(memory["queries"], clip.queries)
        assert memory["track_queries"].shape[1] == 2
    assert write(output).num_frames == 5
    files = [
        {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*.*")}
        for place in map(pathlib.Path, (whole, output))
    ]
    for each in files:
        assert len(each) == 5 + 3  # and nothing of what was remembered
        del each["overlay.mp4"]
    assert files[0] == files[1]
    for path in whole.glob("label_maps/*"):
        label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert label_map.shape == (SIDE, SIDE) and label_map.max() < CLASSES
