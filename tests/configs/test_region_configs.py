"""Recipes of region frameworks: their training steps trace, and their keys are read."""

import ml_collections
import pytest
from test_configs import Reads, noting, trace

from configs import encoder_only, eomt, mask2former, maskformer, region_classifier
from mlseg_jax.tasks.table import find_task

SIGNS = "dataset=sign_scenes,"
TRACED = [
    (mask2former, f"{SIGNS}task=panoptic"),
    (mask2former, f"{SIGNS}task=video_instance,backbone=swin_demo"),
    (maskformer, f"{SIGNS}task=instance,selection=given,backbone=vit_demo"),
    (eomt, f"{SIGNS}task=panoptic,selection=top_k"),
    (encoder_only, SIGNS[:-1]),
]


@pytest.mark.parametrize("recipe, argument", TRACED)
def test_the_training_step_traces(recipe, argument, monkeypatch):
    config = recipe.get_config(argument)
    config.train.batch_size = 8
    reads = Reads(config)
    with monkeypatch.context() as patch:
        patch.setattr(ml_collections.ConfigDict, "__getitem__", noting(reads))
        trace(config)
        find_task(config)
    parts = "loss.regions", "model.backbone", "model.decoder"
    assert not [key for key in reads.unread(config) if key.startswith(parts)]


@pytest.mark.parametrize("task", region_classifier.SEGMENTS)
@pytest.mark.parametrize("recipe", [eomt, mask2former, maskformer])
def test_every_task_is_consistent(recipe, task):
    for dataset in region_classifier.NUM_CLASSES:
        config = recipe.get_config(f"dataset={dataset},task={task}")
        assert find_task(config).best_metric in ("mIoU", "PQ", "AP")
        small = dataset == "sign_scenes"
        assert config.model.backbone.embed_dim <= 128 or not small
        cells = config.model.backbone.patch_size if recipe is eomt else 32
        assert config.data.crop_size[0] % cells == 0


@pytest.mark.parametrize(
    "backbone, sides", [("swin_demo", (128, 512)), ("vit_demo", (144, 528)),
                        ("vit_b16", (128, 512)), ("dinov2_b14_reg", (140, 532))],
)  # fmt: skip
def test_crops_are_whole_cells(backbone, sides):
    assert tuple(region_classifier.fit_side(s, backbone) for s in (128, 512)) == sides


@pytest.mark.parametrize("recipe", [encoder_only, eomt, mask2former, maskformer])
def test_positions_of_small_crops(recipe):
    """A table is made for the crops; EoMT's was of 640 pixels for crops of 132."""
    config = recipe.get_config(f"{SIGNS}backbone=vit_demo")
    assert config.model.backbone.image_size == config.data.crop_size


RESNET, SWIN = (1e-4, (("^backbone/", 0.1),), 1e-4, 0), (6e-5, (), 0.01, 1500)
ADE, COCO = ("poly", 0.7, "short_side", 16), ("steps", 0.8, "detr", 64)
MASKFORMER = [
    # Rate, factors, decay and warm-up; schedule, least score, augmentation and batch;
    # crop, longest side and steps.
    ("ade20k", "semantic", "resnet50", RESNET, ADE, 512, 2048, 160_000),
    ("ade20k", "semantic", "resnet101", RESNET, ADE, 512, 2048, 160_000),
    ("ade20k", "semantic", "swin_b", SWIN, ADE, 640, 2560, 160_000),
    ("ade20k", "semantic", "swin_l", SWIN, ADE, 640, 2560, 160_000),
    ("ade20k_panoptic", "panoptic", "resnet50", RESNET, ADE, 640, 2560, 720_000),
    ("ade20k_panoptic", "panoptic", "resnet101", RESNET, ADE, 640, 2560, 720_000),
    ("coco_panoptic", "panoptic", "resnet50", RESNET, COCO, 1344, 1333, 554_400),
    ("coco_panoptic", "panoptic", "resnet101", RESNET, COCO, 1344, 1333, 554_400),
    ("coco_panoptic", "panoptic", "swin_t", SWIN, COCO, 1344, 1333, 554_400),
    ("coco_panoptic", "panoptic", "swin_s", SWIN, COCO, 1344, 1333, 554_400),
    ("coco_panoptic", "panoptic", "swin_b", SWIN, COCO, 1344, 1333, 554_400),
    ("coco_panoptic_json", "panoptic", "swin_l", SWIN, COCO, 1024, 1000, 554_400),
]


@pytest.mark.parametrize("module", [mask2former, maskformer, eomt])
def test_the_label_loss_weighs_as_published_or_by_the_rule(module):
    weights = {
        **dict.fromkeys(("ade20k", "ade20k_panoptic", "coco_panoptic"), 10.0),
        **{"sign_scenes": 10.0, "ade20k_full": 100.0, "coco_lvis": 300.0},
        **dict.fromkeys(("folder", "coco_json", "coco_panoptic_json"), "auto"),
    }
    for dataset, weight in weights.items():
        task = "panoptic" if "panoptic" in dataset else "semantic"
        arg = f"dataset={dataset},task={task},selection="
        config = module.get_config(arg + "top_k")
        assert config.loss.multilabel_weight == weight
        assert config.selection.k == (config.data.num_classes or 50)
        assert module.get_config(arg + "complete").loss.multilabel_weight == 0.0


@pytest.mark.parametrize("row", MASKFORMER, ids=lambda row: "-".join(row[:3]))
def test_maskformer_as_published(row):
    """masks.md 3.4."""
    dataset, task, backbone, *row = row
    config = maskformer.get_config(f"dataset={dataset},task={task},backbone={backbone}")
    rate, (schedule, score, augmentation, batch), side, longest, steps = row
    optimizer, data = config.optimizer, config.data
    assert rate == (
        *(optimizer.learning_rate, optimizer.learning_rate_factors),
        *(optimizer.weight_decay, optimizer.warmup_steps),
    )
    assert (optimizer.schedule, optimizer.clip_norm) == (schedule, 0.01)
    assert schedule == "poly" or optimizer.falls_at == (369_600 / 554_400,)
    assert (data.crop_size, data.max_side) == ((side, side), longest)
    assert (data.augmentation, config.train.batch_size) == (augmentation, batch)
    assert config.train.steps == steps
    sides = (480, 800, 11) if batch == 64 else (side // 2, 2 * side, 16)
    short = data.short_sides
    assert (min(short), max(short), len(short)) == sides
    if task == "panoptic":
        assert config.eval.object_threshold == score
        assert config.eval.overlap_threshold == 0.8
