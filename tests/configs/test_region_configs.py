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
