"""Learning rates where a decoder runs the backbone's last blocks (masks.md 7.2)."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import eomt
from mlseg_jax.training.optimizer import depth_factors, make_optimizer
from mlseg_jax.training.schedule import make_schedule


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay_of_joint_blocks(scan):
    """Of 5 blocks the decoder runs 2."""
    name = "backbone/blocks/blocks"
    paths = {"backbone/norm/scale": jnp.ones(1), "decoder/queries": jnp.ones(1)}
    paths |= {"backbone/patch_projection/kernel": jnp.ones(1)}
    if scan:
        paths[f"{name}/mlp_in/bias"] = jnp.ones((5, 1))
    else:
        paths |= {f"{name}/{i}/mlp_in/bias": jnp.ones(1) for i in range(5)}
    factors = depth_factors(paths, 0.8, 2)
    expected = [0.8**4, 0.8**3, 0.8**2, 1.0, 1.0]
    own = [factors[path] for path in paths if path.startswith(name)]
    np.testing.assert_allclose(np.ravel(own), expected, rtol=1e-6)
    assert factors["backbone/patch_projection/kernel"] == pytest.approx(0.8**4)
    assert "backbone/norm/scale" not in factors and "decoder/queries" not in factors


RECIPES = {
    # Of 24 blocks: factors of the first and the last five; steps; masks from and to.
    "dataset=ade20k": (
        0.8**23, 0.8 ** np.arange(4, -1, -1), 31, (6520, 13040, 19560, 26080),
        (13040, 19560, 26080, 32600),
    ),
    "dataset=ade20k,backbone=dinov3_l16": (
        1.0, np.ones(5), 16, (0, 6520, 9780, 13040), (3000, 9780, 13040, 16300),
    ),
    "dataset=coco_json,task=instance,backbone=dinov3_l16": (
        0.8**23, (0.8**4, 1, 1, 1, 1), 12, (0, 29564, 44346, 59128),
        (3000, 44346, 59128, 73910),
    ),
}  # fmt: skip


@pytest.mark.parametrize("argument", RECIPES)
def test_published_recipes(argument):
    """masks.md 7.2, and the published configurations."""
    first, last, epochs, starts, ends = RECIPES[argument]
    config = eomt.get_config(argument)
    blocks = [f"backbone/blocks/blocks/{i}/mlp_in/bias" for i in (0, *range(19, 24))]
    paths = dict.fromkeys(["backbone/class_token", *blocks], jnp.ones(1))
    rates = config.optimizer
    rates.update(clip_norm=0.0, weight_decay=0.0, warmup_steps=0)
    rates.update(backbone_warmup_steps=0)
    rule = make_optimizer(config)
    updates, _ = rule.update(paths, rule.init(paths), paths)
    factors = [-float(updates[path][0]) / rates.learning_rate for path in paths]
    np.testing.assert_allclose(factors, [first, first, *last], rtol=1e-4)
    pictures = 118_287 if "coco" in argument else 20_210
    assert abs(config.train.steps - epochs * pictures / 16) < epochs
    decoder, steps = config.model.decoder, config.train.steps
    np.testing.assert_allclose(np.multiply(decoder.mask_starts, steps), starts, atol=1)
    np.testing.assert_allclose(np.multiply(decoder.mask_ends, steps), ends, atol=1)
    assert config.data.photometric == ("ade20k" in argument)


def test_small_models_train_twice_as_long_on_coco():
    config = eomt.get_config(
        "dataset=coco_panoptic,task=panoptic,backbone=dinov2_s14_reg"
    )
    steps = config.train.steps
    assert steps == 2 * 88_715
    starts = np.multiply(config.model.decoder.mask_starts, steps)
    np.testing.assert_allclose(starts, (29564, 73910, 118256), atol=1)


def test_two_warm_ups():
    """The backbone stands still while the rest warms up, and each falls by its own."""
    config = eomt.get_config("dataset=ade20k")
    config.train.steps = 100
    config.optimizer.update(
        warmup_steps=10, backbone_warmup_steps=20, layer_decay=1.0, clip_norm=0.0
    )
    rate = config.optimizer.learning_rate
    steps = np.arange(100)
    rest = np.where(steps < 10, steps / 10, np.clip(1 - (steps - 10) / 90, 0, 1) ** 0.9)
    backbone = np.where(
        steps < 30, np.clip((steps - 10) / 20, 0, 1),
        np.clip(1 - (steps - 30) / 70, 0, 1) ** 0.9,
    )  # fmt: skip
    own = [make_schedule(config, of_backbone=x) for x in (False, True)]
    for schedule, expected in zip(own, (rest, backbone), strict=True):
        found = [float(schedule(step)) for step in steps]
        np.testing.assert_allclose(found, rate * expected, rtol=1e-4, atol=1e-9)
    # One step of the whole rule: what of the backbone is still does not move.
    params = {"backbone/norm/scale": jnp.ones(2), "decoder/queries": jnp.ones(2)}
    rule = make_optimizer(config)
    state = rule.init(params)
    for step in range(3):
        updates, state = rule.update(params, state, params)
        assert not np.any(updates["backbone/norm/scale"])
        assert np.all(updates["decoder/queries"] < 0) or step == 0
