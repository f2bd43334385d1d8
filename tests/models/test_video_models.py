"""Mask2Former on clips: published sizes, one frame is a picture, frames and time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import NUM_CLASSES, random_parameters
from test_region_models import tiny_config

from configs import mask2former
from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import select_complete
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.layers.clips import side_by_side, to_clip, to_frames
from mlseg_jax.models.layers.position_embedding import map_positions, time_positions
from mlseg_jax.models.macs import Macs
from mlseg_jax.tasks.table import find_task

pytestmark = pytest.mark.usefixtures("quick_compiles")

# method.md 14.4: parameters, and 2^30 multiply-accumulates of two frames of 640 pixels.
VSPW = "dataset=vspw,task=video_semantic"
YOUTUBE = "dataset=youtube_vis_2019,task=video_instance"
PUBLISHED = [
    (f"{VSPW},selection=complete", 215_482_097, 736.22),
    (VSPW, 218_894_314, 736.94),
    (f"{YOUTUBE},selection=complete", 215_511_709, 752.34),
    (YOUTUBE, 218_837_742, 753.12),
]


@pytest.mark.parametrize("argument, parameters, macs", PUBLISHED)
def test_published_sizes_of_videos(argument, parameters, macs):
    config = mask2former.get_config(argument)
    with config.unlocked():
        config.model.backbone.scan = True  # the same numbers, traced once
        config.data.crop_size = (640, 640)
    model = FunctionalModel.build(config, config.data.num_classes)
    assert model.num_parameters == parameters
    total = sum(count_macs(config, model).values(), Macs())
    assert abs(total.paper / 2**30 / macs - 1.0) < 0.005


def test_positions_in_time():
    """masks.md 6.1, written out: all channels are of one axis."""
    found = time_positions(5, 8)
    for frame in range(5):
        for channel in range(8):
            angle = (frame + 1) / (5 + 1e-6) * 2 * math.pi
            angle *= 10_000 ** (-2 * (channel // 2) / 8)
            wave = math.cos if channel % 2 else math.sin
            assert found[frame, channel] == pytest.approx(wave(angle), abs=1e-6)
    grid = map_positions(FeatureMap(jnp.zeros((1, 2, 3, 8))), 8)
    assert grid.shape == (1, 2, 3, 8)


def test_frames_and_clips():
    grid = jnp.arange(2 * 3 * 4 * 5 * 2).reshape(2, 3, 4, 5, 2)
    clip = FeatureMap(grid, jnp.asarray([[3, 5], [4, 2]]))
    frames = to_frames(clip)
    assert frames.grid.shape == (6, 4, 5, 2)
    np.testing.assert_array_equal(frames.grid[4], grid[1, 1])
    np.testing.assert_array_equal(frames.grid_size[::2], [[3, 5], [3, 5], [4, 2]])
    back = to_clip(frames, 3)
    np.testing.assert_array_equal(back.grid, grid)
    np.testing.assert_array_equal(back.grid_size, clip.grid_size)
    assert back.mask.shape == (2, 4, 5)
    assert side_by_side(clip).grid.shape == (2, 12, 5, 2)


def test_one_frame_is_a_picture():
    """Clips of more are compared with other modules in tests/parity."""
    config = tiny_config(argument="pixel_decoder=fpn")
    model = FunctionalModel.build(config, NUM_CLASSES)
    parameters = random_parameters(model)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 40, 3)).astype(np.float32)

    @jax.jit
    def run(parameters, images):
        output = model.bind(parameters)(images, select_complete)
        masks = output.regions.mask_logits()
        return output.label_scores, output.class_logits, masks

    picture, clip = run(parameters, images), run(parameters, images[:, None])
    for expected, found in zip(picture[:2], clip[:2], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert clip[2].shape == (2, 5, 1, 8, 10)
    np.testing.assert_allclose(clip[2][:, :, 0], picture[2], rtol=1e-3, atol=1e-3)


def test_tasks_that_do_not_fit():
    config = mask2former.get_config("dataset=sign_scenes,task=video_semantic")
    assert find_task(config).best_metric == "mIoU"
    with config.unlocked():
        config.model.decoder.name = "maskformer"
    with pytest.raises(UserError, match="needs a decoder that looks at clips"):
        find_task(config)
    config.model.decoder.name = "mask2former"
    config.data.repeat_factor = 0.001
    with pytest.raises(UserError, match="are of pictures, and clips"):
        find_task(config)
    with config.unlocked():
        config.data.repeat_factor = 0.0
        del config.data.num_frames
    with pytest.raises(UserError, match="trained on clips; start from a recipe"):
        find_task(config)
