"""Update rules against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shrink import deeplabv3_config, segmenter_config
from tiny import tiny_config

from configs import query2label, segmenter
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.training.optimizer import average_decay, make_optimizer
from mlseg_jax.training.schedule import make_schedule


def configure(**optimizer):
    steps = optimizer.pop("steps", 100)
    values = {f"optimizer.{key}": value for key, value in optimizer.items()}
    return tiny_config({"train.steps": steps, **values})


FACTORS = (("special", 100.0), ("norm", 0.0))
START = {
    "block/special_norm": np.asarray([1.0, -2.0], np.float32),
    "block/norm": np.asarray([3.0], np.float32),
    "block/kernel": np.asarray([[0.5, -0.25]], np.float32),
}
FACTOR_OF = {"block/special_norm": 100.0, "block/norm": 0.0, "block/kernel": 1.0}


def gradients(step):
    rng = np.random.default_rng(step)
    return {k: rng.normal(size=v.shape).astype(np.float32) for k, v in START.items()}


def run(config, steps=5):
    optimizer = make_optimizer(config)
    params = {key: jnp.asarray(value) for key, value in START.items()}
    state = optimizer.init(params)
    for step in range(steps):
        gradient = jax.tree.map(jnp.asarray, gradients(step))
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_sgd_decays_in_the_gradient():
    config = configure(
        name="sgd", schedule="poly", learning_rate=0.1, end_learning_rate=0.01,
        poly_power=0.9, momentum=0.9, weight_decay=0.01,
        weight_decay_factors=FACTORS, clip_norm=0.0, steps=10,
    )  # fmt: skip
    params = {k: v.astype(np.float64) for k, v in START.items()}
    momentum = {k: np.zeros_like(v) for k, v in params.items()}
    for step in range(5):
        rate = (0.1 - 0.01) * (1 - step / 10) ** 0.9 + 0.01
        for key, gradient in gradients(step).items():
            # torch.optim.SGD: decay joins the gradient, then the momentum.
            decayed = gradient + 0.01 * FACTOR_OF[key] * params[key]
            momentum[key] = 0.9 * momentum[key] + decayed
            params[key] = params[key] - rate * momentum[key]
    for key, value in run(config).items():
        np.testing.assert_allclose(value, params[key], rtol=1e-5, atol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    config = configure(
        name="adamw", schedule="constant", learning_rate=0.1, weight_decay=0.01,
        weight_decay_factors=FACTORS, clip_norm=0.0,
    )  # fmt: skip
    params = {k: v.astype(np.float64) for k, v in START.items()}
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    for step in range(5):
        for key, gradient in gradients(step).items():
            first[key] = 0.9 * first[key] + 0.1 * gradient
            second[key] = 0.999 * second[key] + 0.001 * gradient**2
            mean = first[key] / (1 - 0.9 ** (step + 1))
            square = second[key] / (1 - 0.999 ** (step + 1))
            adam = mean / (np.sqrt(square) + 1e-8)
            params[key] = params[key] - 0.1 * (
                adam + 0.01 * FACTOR_OF[key] * params[key]
            )
    for key, value in run(config).items():
        np.testing.assert_allclose(value, params[key], rtol=1e-4, atol=1e-5)


def test_the_whole_gradient_is_clipped():
    config = configure(
        name="sgd", schedule="constant", learning_rate=1.0, momentum=0.0,
        weight_decay=0.0, clip_norm=0.5,
    )  # fmt: skip
    params = run(config, steps=1)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients(0).values()))
    for key, gradient in gradients(0).items():
        expected = START[key] - gradient * 0.5 / norm
        np.testing.assert_allclose(params[key], expected, rtol=1e-4, atol=1e-6)


def test_the_papers_factors_meet_the_models_names():
    """method.md 12.1: 100 on the multi-label block and classifier, 0 on norms."""
    config = segmenter.get_config("dataset=ade20k")
    shapes = FunctionalModel.build(config, 150).shapes
    params = {path: jnp.ones(1) for path in shapes}
    zeros = {path: jnp.zeros(1) for path in shapes}
    config.unlock()
    config.optimizer.update(
        name="sgd", momentum=0.0, learning_rate=1.0, schedule="constant"
    )
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    factor = {path: -float(update[0]) / 1e-6 for path, update in updates.items()}
    hundredfold = {p for p, f in factor.items() if f == pytest.approx(100.0)}
    undecayed = {p for p, f in factor.items() if f == 0.0}
    assert {p for p, f in factor.items() if f == pytest.approx(1.0)} == (
        set(shapes) - hundredfold - undecayed
    )
    assert hundredfold == {
        p for p in shapes if p.startswith("multilabel_head/blocks/blocks/0/")
        or p.startswith("multilabel_head/classifier")
    }  # fmt: skip
    # Norms inside the hundredfold block keep their hundred, those of the ViT their one.
    assert any("norm" in p for p in hundredfold)
    assert not any(p.startswith("backbone/blocks") for p in undecayed)
    for name in ("position_table", "class_token", "decoder/norm", "rank_norm/"):
        assert any(name in p for p in undecayed), (name, sorted(undecayed))
    assert all(
        any(word in p for word in ("position_table", "class_token", "norm"))
        for p in undecayed
    )


def one_cycle(start, peak, end, step, steps):
    """PyTorch's OneCycleLR by its documentation, with cosines."""
    top = 0.2 * steps - 1
    if step <= top:
        return peak + (start - peak) / 2 * (1 + np.cos(np.pi * step / top))
    share = (step - top) / (steps - 1 - top)
    return end + (peak - end) / 2 * (1 + np.cos(np.pi * share))


def test_one_cycle_turns_the_learning_rate_and_the_first_decay():
    steps = 30
    config = configure(
        schedule="one_cycle",
        name="adamw",
        learning_rate=0.5,
        steps=steps,
        clip_norm=0.0,
    )
    schedule, optimizer = make_schedule(config), make_optimizer(config)
    assert float(schedule(steps + 5)) == pytest.approx(0.5 / 25e4, rel=1e-4)
    parameters = {"a": jnp.asarray([1.0, -2.0])}
    state, rng = optimizer.init(parameters), np.random.default_rng(0)
    mean = square = np.zeros(2)
    decay = config.optimizer.weight_decay
    expected = np.asarray([1.0, -2.0])
    update = jax.jit(optimizer.update)
    for step in range(steps):
        rate = one_cycle(0.02, 0.5, 0.02 / 1e4, step, steps)
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-4, abs=1e-8)
        gradient = rng.standard_normal(2)
        beta1 = one_cycle(0.95, 0.85, 0.95, step, steps)
        mean = beta1 * mean + (1 - beta1) * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - beta1 ** (step + 1))
        deviation = np.sqrt(square / (1 - 0.999 ** (step + 1)))
        expected = expected - rate * (corrected / (deviation + 1e-8) + decay * expected)
        gradients = {"a": jnp.asarray(gradient, jnp.float32)}
        updates, state = update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        np.testing.assert_allclose(parameters["a"], expected, rtol=2e-4)


def test_frozen_parameters_stay_and_cost_no_state():
    config = configure(name="adamw", frozen=("^a/", "norm"), weight_decay=0.5)
    parameters = {"a/kernel": jnp.ones(3), "b/norm": jnp.ones(3), "b/c": jnp.ones(3)}
    optimizer = make_optimizer(config)
    state = optimizer.init(parameters)
    updates, _ = optimizer.update(parameters, state, parameters)
    assert not updates["a/kernel"].any() and not updates["b/norm"].any()
    assert updates["b/c"].all()
    assert sum(x.shape == (3,) for x in jax.tree.leaves(state)) == 2  # of one parameter
    config.optimizer.frozen = ("c$", "x")
    with pytest.raises(UserError, match="'x', which is in the path of no parameter"):
        make_optimizer(config).init(parameters)


def steps_of(config, shapes):
    """How far one step of a gradient of ones goes, by path."""
    config.unlock()
    config.optimizer.update(
        name="sgd", momentum=0.0, learning_rate=1.0, schedule="constant",
        weight_decay=0.0, clip_norm=0.0,
    )  # fmt: skip
    optimizer = make_optimizer(config)
    ones = {path: np.ones(s.shape, np.float32) for path, s in shapes.items()}
    update = jax.jit(lambda x: optimizer.update(x, optimizer.init(x), x)[0])
    updates = update(ones)
    return {path: -np.asarray(update) for path, update in updates.items()}


@pytest.mark.parametrize("scan", [False, True])
def test_layer_decay_is_beits(scan):
    """method.md 12.1: 0.95^(L - id - 1), L = blocks + 2; heads keep their rate."""
    config = segmenter_config(depth=3, scan=scan)
    with config.unlocked():
        config.optimizer.layer_decay = 0.95
        config.optimizer.learning_rate_factors = (
            ("multilabel_head/norm", 0.5), ("multilabel_head", 0.1)
        )  # fmt: skip
    shapes = FunctionalModel.build(config, 7).shapes
    rates = {0: 0.95**4, 1: 0.95**3, 2: 0.95**2, 3: 0.95}
    seen = set()
    for path, step in steps_of(config, shapes).items():
        parts = path.split("/")
        if path.startswith("backbone/blocks/blocks/"):
            ids = [1, 2, 3] if scan else [int(parts[3]) + 1]
            expected = np.asarray([rates[i] for i in ids])
            step = step.reshape(len(ids), -1)
            expected = np.broadcast_to(expected[:, None], step.shape)
        elif parts[:2] == ["backbone", "norm"]:
            expected = 1.0
        elif parts[0] == "backbone":
            expected = rates[0]
        else:
            expected = {"multilabel_head": 0.1}.get(parts[0], 1.0)
            expected = 0.5 if path.startswith("multilabel_head/norm") else expected
        np.testing.assert_allclose(step, expected, rtol=1e-5, err_msg=path)
        seen |= set(np.round(np.ravel(step), 5).tolist())
    assert len(seen) == 7


@pytest.mark.parametrize("frozen", ["backbone/blocks/blocks/2/", "backbone/blocks/"])
def test_what_is_frozen_changes_no_other_rate(frozen):
    config = segmenter_config(depth=3)
    with config.unlocked():
        config.optimizer.layer_decay = 0.5
    shapes = FunctionalModel.build(config, 7).shapes
    whole = steps_of(config, shapes)
    config.optimizer.frozen = (frozen,)
    for path, step in steps_of(config, shapes).items():
        expected = 0.0 if path.startswith(frozen) else whole[path]
        np.testing.assert_array_equal(step, expected, err_msg=path)


def test_layer_decay_of_a_backbone_in_stages():
    config = deeplabv3_config()
    with config.unlocked():
        config.optimizer.layer_decay = 0.9
    shapes = FunctionalModel.build(config, 7).learned
    with pytest.raises(UserError, match="needs a backbone that is one stack"):
        steps_of(config, shapes)


# --------------------------------------------------------------------- averaged weights


def test_the_average_warms_up():
    config = configure(ema_decay=0.9997)
    decays = [float(average_decay(config, t)) for t in range(300)]
    np.testing.assert_allclose(
        decays, [min(0.9997, (1 + t) / (10 + t)) for t in range(300)], rtol=1e-6
    )
    # How much of the random start is in what is evaluated, then and without.
    assert np.prod(decays) < 1e-12 < 0.9 < 0.9997**300
    assert float(average_decay(config, 10**6)) == pytest.approx(0.9997)
    assert float(jax.jit(lambda t: average_decay(config, t))(4)) == pytest.approx(
        5 / 14
    )


def test_without_warm_up():
    config = configure(ema_decay=0.75, ema_warmup=False)
    assert average_decay(config, 0) == 0.75


def test_the_release_of_query2label_has_none():
    """Method.md 8.2: one decay from epoch 0 on; own data is trained shorter."""
    for dataset, wanted in (("coco_stuff", False), ("folder", True)):
        optimizer = query2label.get_config(f"dataset={dataset}").optimizer
        assert (optimizer.ema_decay, optimizer.ema_warmup) == (0.9997, wanted)
