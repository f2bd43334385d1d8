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
