"""Every row of ``configs/paper.py`` traces and has its recipe (method.md 4.4, 12)."""

import jax
import numpy as np
import pytest

from configs import paper
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.tasks import semantic

# Crop, steps, K, loss (negative focus), weight, weight decay, mean of pixels.
HALF, IMAGENET = 127.5, 123.675
RECIPES = {
    "pascal_context_mlseg": (480, 80_000, 25, 2.0, 5.0, 1e-6, HALF),
    "ade20k_mlseg": (512, 160_000, 50, 2.0, 10.0, 1e-6, HALF),
    "ade20k_large_mlseg": (640, 160_000, 50, 2.0, 10.0, 1e-6, HALF),
    "ade20k_mlseg_oce": (512, 160_000, 50, 2.0, 10.0, 1e-6, HALF),
    "ade20k_oracle": (512, 160_000, 64, None, 0.0, 1e-6, HALF),
    "coco_stuff_mlseg": (512, 40_000, 50, "bce", 10.0, 0.0, IMAGENET),
    "coco_stuff_80k_mlseg": (512, 80_000, 50, "bce", 5.0, 0.0, IMAGENET),
    "coco_stuff_large_mlseg": (640, 40_000, 50, 2.0, 10.0, 0.0, IMAGENET),
    "coco_stuff_mlseg_oce": (512, 40_000, 50, "bce", 10.0, 0.0, IMAGENET),
    "coco_stuff_transformer_decoder": (512, 40_000, 50, 0.0, 10.0, 0.0, IMAGENET),
    "coco_stuff_global_pooling": (512, 40_000, 50, 0.0, 10.0, 0.0, IMAGENET),
    "coco_stuff_encnet": (512, 40_000, 171, "bce", 0.2, 0.0, IMAGENET),
    "coco_stuff_essnet": (512, 40_000, 171, None, 0.0, 0.0, IMAGENET),
    "coco_stuff_mt": (512, 40_000, 171, "bce", 10.0, 0.0, IMAGENET),
    "ade20k_full_mlseg": (512, 160_000, 100, 2.0, 100.0, 0.0, IMAGENET),
    "coco_lvis_mlseg": (512, 320_000, 100, 2.0, 300.0, 1e-6, IMAGENET),
    "coco_lvis_baseline": (512, 320_000, 1284, None, 0.0, 0.0, IMAGENET),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    crop, steps, k, focus, weight, decay, mean = RECIPES[name]
    config = paper.get_config(name)
    assert config.data.crop_size == config.eval.window == config.eval.stride
    assert (config.data.crop_size, config.train.steps) == ((crop, crop), steps)
    complete = config.selection.name == "complete"
    assert (config.data.num_classes if complete else config.selection.k) == k
    assert config.loss.multilabel_weight == weight
    if focus == "bce":
        assert config.loss.multilabel == "binary_cross_entropy"
    elif focus is not None:
        assert config.loss.multilabel == "asymmetric"
        assert (config.loss.gamma_negative, config.loss.gamma_positive) == (focus, 0.0)
        assert config.loss.clip == 0.05
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("sgd", 1e-3)
    assert (optimizer.momentum, optimizer.end_learning_rate) == (0.9, 1e-5)
    assert (optimizer.schedule, optimizer.poly_power) == ("poly", 0.9)
    assert (optimizer.weight_decay, config.data.pixel_mean[0]) == (decay, mean)
    assert config.train.batch_size == 8 and config.loss.pixel_mean == "all"
    assert config.model.backbone.drop_path_rate == config.model.decoder.dropout_rate
    assert (config.eval.mode, config.eval.selection_scope) == ("slide", "per_window")


# Traced and counted by tests/models/test_region_models.py.
VIDEOS = [n for n, row in paper.EXPERIMENTS.items() if "task=video" in row[0]]
REGIONS = [
    n
    for n, row in paper.EXPERIMENTS.items()
    if row[0].startswith("mask") and n not in VIDEOS
]


@pytest.mark.parametrize("name", REGIONS)
def test_recipes_of_regions(name):
    """method.md 12.4, masks.md 3.4."""
    config = paper.get_config(name)
    assert config.is_locked and config.name == name
    assert config.task == ("panoptic" if "panoptic" in name else "semantic")
    assert config.selection.k == 150
    assert config.selection.last_prediction_only == ("oracle" in name)
    assert config.data.num_classes == 150
    has_head = name.endswith(("mlseg", "mt", "mt_ls"))
    assert config.loss.multilabel_weight == 10.0 * has_head
    assert config.model.decoder.cosine == has_head
    optimizer, is_mask2former = config.optimizer, "maskformer" not in name
    assert (optimizer.name, config.train.batch_size) == ("adamw", 16)
    assert (optimizer.schedule, optimizer.poly_power) == ("poly", 0.9)
    assert optimizer.clip_norm == 0.01
    if is_mask2former:
        assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 0.05)
        assert config.data.crop_size == (640, 640)
        assert config.train.steps == 160_000
        large = config.task == "panoptic"
        assert config.model.decoder.num_queries == 100 * (1 + large)
    elif config.task == "panoptic":
        assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 1e-4)
        assert config.train.steps == 720_000
    else:
        assert (optimizer.learning_rate, optimizer.weight_decay) == (6e-5, 0.01)
        assert (optimizer.warmup_steps, config.train.steps) == (1500, 160_000)


@pytest.mark.parametrize("name", VIDEOS)
def test_recipes_of_videos(name):
    """method.md 11.1, 11.2 and 12.4; counted by tests/models/test_video_models.py."""
    config = paper.get_config(name)
    is_vspw = name.startswith("vspw")
    assert config.task == ("video_semantic" if is_vspw else "video_instance")
    assert (config.train.steps, config.train.batch_size) == (6000, 16)
    optimizer, data = config.optimizer, config.data
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 0.05)
    assert optimizer.schedule == "steps" and optimizer.falls_at == (4000 / 6000,)
    assert (data.num_frames, data.frame_window) == (2, 20)
    assert data.short_sides == ((480,) if is_vspw else (360, 480))
    assert data.base_size[1] == (360 if "youtube_vis_resnet" in name else 480)
    assert config.eval.num_frames == (20 if is_vspw else 0)
    large = config.model.backbone.get("embed_dim") == 192 and not is_vspw
    assert config.model.decoder.num_queries == 100 * (1 + large)
    assert data.num_classes == config.selection.k == (124 if is_vspw else 40)
    assert config.selection.last_prediction_only == ("oracle" in name)
    if not is_vspw:
        assert config.eval.max_instances == 10
    rates = dict(optimizer.learning_rate_factors)
    expected = 1.0 if not is_vspw else 2.0 if "resnet101" in name else 5.0
    assert rates["^multilabel_head/"] == expected
    has_head = name.endswith(("mlseg", "mt", "mt_ls"))
    assert config.loss.multilabel_weight == 10.0 * has_head


@pytest.mark.parametrize(
    "name", [n for n in paper.EXPERIMENTS if n not in REGIONS + VIDEOS]
)
def test_every_row_traces(name):
    config = paper.get_config(name)
    assert config.is_locked
    with config.unlocked():
        config.model.backbone.scan = True
    model = FunctionalModel.build(config, config.data.num_classes)
    size = (1, *config.data.crop_size)
    batch = {
        "image": jax.ShapeDtypeStruct((*size, 3), np.uint8),
        "label_map": jax.ShapeDtypeStruct(size, np.int32),
    }
    total, _ = jax.eval_shape(
        lambda params, batch, rng: semantic.loss(
            model.bind(params), batch, config, rng
        ),
        *(model.shapes, batch, jax.random.key(0)),
    )
    assert total.shape == ()


def test_a_row_that_is_not_there():
    with pytest.raises(ValueError, match="did you mean 'coco_stuff_mlseg'"):
        paper.get_config("coco_stuff_mlsg")
