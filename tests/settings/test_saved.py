"""Configurations of runs that are older, or have keys of other parts."""

import json

import pytest
from tiny import tiny_config

from configs import linear
from mlseg_jax.models.build import check_config
from mlseg_jax.settings import saved

NEW = {
    "optimizer": ("ema_warmup", "clip_norm"),
    "eval": ("oracle_k",),
    "data": ("rare_crop_rate",),
}
"""Keys that the older run is without."""


def save(path, config, missing=()):
    facts = json.loads(config.to_json_best_effort())
    for section, keys in missing:
        for key in keys:
            del facts[section][key]
    (path / "config.json").write_text(json.dumps(facts))
    return saved.get_config(str(path))


def test_keys_newer_than_a_run_have_their_defaults(tmp_path):
    config = tiny_config({"optimizer.clip_norm": 3.0})
    loaded = save(tmp_path, config, NEW.items())
    check_config(loaded)
    assert loaded.is_locked
    assert loaded.optimizer.clip_norm == 0.0
    assert (loaded.eval.oracle_k, loaded.data.rare_crop_rate) == (64, 0.0)
    # What the run has said stays.
    assert loaded.optimizer.learning_rate == config.optimizer.learning_rate
    assert loaded.data.crop_size == config.data.crop_size


def test_a_run_of_a_pixel_classifier_goes_on(tmp_path):
    """Its head had the two keys in no recipe once."""
    config = linear.get_config("dataset=sign_scenes,backbone=dinov2_demo")
    facts = json.loads(config.to_json_best_effort())
    for key in ("classes_apart", "mlp_ratio"):
        del facts["model"]["multilabel_head"][key]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    head = saved.get_config(str(tmp_path)).model.multilabel_head
    assert head.to_dict() == config.model.multilabel_head.to_dict()


@pytest.mark.parametrize("decay, warmup", [(0.0, True), (0.99, False)])
def test_averages_of_older_runs_go_on_without_a_warmup(tmp_path, decay, warmup):
    config = tiny_config({"optimizer.ema_decay": decay})
    assert save(tmp_path, config, NEW.items()).optimizer.ema_warmup is warmup
    assert save(tmp_path, config).optimizer.ema_warmup


def test_keys_of_other_parts_are_no_mistake(tmp_path):
    config = tiny_config()
    with config.unlocked():
        config.model.backbone.window_size = 7  # of Swin
        config.model.multilabel_head.share_embeddings = True
    check_config(save(tmp_path, config))
