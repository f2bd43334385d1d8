"""Gradients of a batch in parts are those of the batch, whatever means divide by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from mlseg_jax.distributed.sharding import AXES, batch_sharding, on_mesh
from mlseg_jax.label_selection import gather_classes
from mlseg_jax.losses.class_priors import NO_PRIORS, ClassPriors
from mlseg_jax.losses.reduce import Mean, counts_of, total_loss
from mlseg_jax.models.build import flat_parameters, statistics
from mlseg_jax.models.decoders.auxiliary import FCNHead
from mlseg_jax.models.interfaces import FeatureMap, Output
from mlseg_jax.models.layers.norm import BatchNorm
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.models.query2label import Query2Label
from mlseg_jax.settings import base
from mlseg_jax.tasks import multilabel, semantic
from mlseg_jax.training.accumulate import _counts, accumulated_gradients
from mlseg_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures("quick_compiles")

C, K, SIDE, BATCH = 5, 2, 8, 16
WEIGHTS = np.asarray([0.2, 3.0, 1.0, 0.5, 2.0], np.float32)


class Head(FCNHead):
    def __init__(self):
        self.class_weights = nnx.Param(_random(np.random.default_rng(2), C, 3))
        self.class_biases = nnx.Param(jnp.zeros(C))


class PixelClassifier(MLSeg):
    """The smallest model with the outputs of all: matrices on the colours of cells."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.class_embeddings = nnx.Param(_random(rng, C, 3))
        self.scores = nnx.Param(_random(rng, 3, C))
        self.auxiliary_head = Head()

    def __call__(self, images, select, *, image_size=None, rng=None, features=None):
        scores = jnp.mean(images, axis=(1, 2)) @ self.scores[...]
        selection = select(scores)
        queries = gather_classes(self.class_embeddings[...], selection)
        grid = images[:, ::2, ::2]
        logits = jnp.einsum("bhwd,bkd->bhwk", grid, queries)
        return Output(scores, selection, logits, None, FeatureMap(grid))


class Classifier(Query2Label):
    def __init__(self):
        self.scores = nnx.Param(_random(np.random.default_rng(0), 3, C))

    def __call__(self, images, *, image_size=None, rng=None):
        return jnp.mean(images, axis=(1, 2)) @ self.scores[...]


def _random(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def make_batch():
    """Half of the pictures are nearly all ignored, one is entirely."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, C, (BATCH, SIDE, SIDE)).astype(np.int32)
    ignored = (
        rng.random(labels.shape)
        < np.where(np.arange(BATCH) % 2, 0.95, 0.1)[:, None, None]
    )
    ignored[3] = True
    return {
        "image": rng.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32),
        "label_map": np.where(ignored, IGNORE, labels),
        "presence": rng.random((BATCH, C)) < 0.4,
    }


def make_forward(module, config, means=semantic.means, priors=NO_PRIORS):
    graph, state = nnx.split(module)
    paths = list(flat_parameters(state))

    def forward(params, stats, batch, rng):
        flat = {tuple(path.split("/")): params[path] for path in paths}
        bound = nnx.merge(
            graph,
            nnx.from_flat_state(
                [
                    (path, leaf.replace(flat[path]))
                    for path, leaf in nnx.to_flat_state(state)
                ]
            ),
        )
        return means(bound, batch, config, rng, priors), {}

    return forward, flat_parameters(state)


def run(forward, num_parts, params, batch, mesh=None):
    key = jax.random.key(0)

    def gradients(params, batch):
        return accumulated_gradients(forward, num_parts, params, {}, batch, key)[:2]

    if mesh is not None:
        batch = jax.device_put(batch, batch_sharding(mesh))
    return jax.device_get(jax.jit(on_mesh(mesh, gradients))(params, batch))


def assert_same(found, expected):
    for grads, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(grads, wanted, rtol=2e-5, atol=2e-6)


def semantic_config(pixel, over, labels, selection):
    config = base.base("test")
    config.loss.update(
        pixel=pixel, pixel_mean=over, multilabel=labels, num_nearest=2,
        multilabel_weight=10.0,
    )  # fmt: skip
    config.selection.update(name=selection, k=K)
    config.model = {"auxiliary_head": {"weight": 0.4}}
    return config


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("over", ["all", "valid"])
@pytest.mark.parametrize("pixel", ["cross_entropy", "nearest_classes"])
@pytest.mark.parametrize(
    "selection, labels",
    [
        ("complete", "asymmetric"),
        ("top_k", "binary_cross_entropy"),
        ("oracle", "asymmetric"),
    ],
)
def test_every_loss_and_every_mean(pixel, over, weighted, selection, labels):
    """The losses of four parts, by the counts of all, are those of the batch."""
    config = semantic_config(pixel, over, labels, selection)
    priors = ClassPriors(weights=WEIGHTS) if weighted else NO_PRIORS
    forward, params = make_forward(PixelClassifier(), config, priors=priors)
    batch = make_batch()

    def means(part):
        arrays = {key: jnp.asarray(x[part]) for key, x in batch.items()}
        # One operation after the other: nothing new to compile for each case.
        with jax.disable_jit():
            return forward(params, {}, arrays, None)[0]

    parts = [means(slice(i, None, 4)) for i in range(4)]
    counts = jax.tree.map(lambda *x: sum(x), *map(counts_of, parts))
    logs = [total_loss(part, counts)[1] for part in parts]
    found = jax.tree.map(lambda *x: sum(x), *logs)
    assert_same(found, total_loss(means(slice(None)))[1])


@pytest.mark.parametrize(
    "pixel, over, weighted, selection",
    [
        ("cross_entropy", "valid", False, "top_k"),
        ("nearest_classes", "valid", True, "oracle"),
    ],
)
def test_gradients(pixel, over, weighted, selection):
    config = semantic_config(pixel, over, "asymmetric", selection)
    priors = ClassPriors(weights=WEIGHTS) if weighted else NO_PRIORS
    forward, params = make_forward(PixelClassifier(), config, priors=priors)
    batch = make_batch()
    expected = run(forward, 1, params, batch)
    assert all(np.any(grad) for grad in expected[0].values())
    assert_same(run(forward, 4, params, batch), expected)


def test_devices_and_parts_agree():
    config = semantic_config("cross_entropy", "valid", "asymmetric", "top_k")
    priors = ClassPriors(weights=WEIGHTS)
    forward, params = make_forward(PixelClassifier(), config, priors=priors)
    batch = make_batch()
    expected = run(forward, 1, params, batch)
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)
    for parts in (1, 2):
        assert_same(run(forward, parts, params, batch, mesh), expected)


def test_everything_ignored():
    config = semantic_config("cross_entropy", "valid", "asymmetric", "top_k")
    forward, params = make_forward(PixelClassifier(), config)
    batch = make_batch()
    batch["label_map"][:] = IGNORE
    expected = run(forward, 1, params, batch)
    assert expected[1]["loss/pixel"] == 0.0
    assert_same(run(forward, 2, params, batch), expected)


def test_classification():
    config = semantic_config("cross_entropy", "all", "asymmetric", "top_k")
    forward, params = make_forward(Classifier(), config, multilabel.means)
    batch = make_batch()
    assert_same(run(forward, 4, params, batch), run(forward, 1, params, batch))


@pytest.mark.parametrize("over", ["all", "valid"])
def test_counting_first_costs_no_more_than_it_must(over):
    """Nothing where it follows from sizes, else the scores, without any loss."""
    config = semantic_config("cross_entropy", over, "asymmetric", "top_k")
    forward, params = make_forward(PixelClassifier(), config)
    batch, key = make_batch(), jax.random.key(0)

    def count(params, batch):
        parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
        return _counts(forward, params, {}, (parts, jax.random.split(key, 4)))

    def whole(params, batch):
        return accumulated_gradients(forward, 1, params, {}, batch, key)[:2]

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        compiled = [jax.jit(f).lower(params, batch).compile() for f in (count, whole)]
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    text = compiled[0].as_text()
    assert ("exponential" in compiled[1].as_text()) and "exponential" not in text
    # A sort or top-k, and the product that makes the scores, or neither.
    assert ("dot(" in text or "topk" in text.lower()) == (over == "valid")


def test_statistics_go_from_part_to_part():
    """And are not touched by the counting before."""
    norm = BatchNorm(3)
    graph, state = nnx.split(norm)

    def forward(params, stats, batch, rng):
        flat = [
            (path, leaf.replace((params | stats)["/".join(map(str, path))]))
            for path, leaf in nnx.to_flat_state(state)
        ]
        bound = nnx.merge(graph, nnx.from_flat_state(flat))
        out = bound(batch["image"], True)
        means = {"loss/x": Mean(jnp.sum(out**2), jnp.float32(out.size), 1.0)}
        return means, statistics(bound)

    everything = flat_parameters(state)
    stats = statistics(norm)
    params = {k: v for k, v in everything.items() if k not in stats}
    batch = {"image": make_batch()["image"]}
    *_, after = jax.jit(
        lambda p, s, b: accumulated_gradients(forward, 2, p, s, b, jax.random.key(0))
    )(params, stats, batch)
    mean = np.zeros(3)
    for part in (0, 1):
        rows = batch["image"][part::2].reshape(-1, 3)
        mean = 0.9 * mean + 0.1 * rows.mean(0)
    np.testing.assert_allclose(after["mean"], mean, rtol=1e-4, atol=1e-7)
