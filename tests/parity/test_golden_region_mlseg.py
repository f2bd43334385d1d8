"""MLSeg's Mask2Former on pictures and clips, in training, against PyTorch: scores of
labels, the selection, logits over ranks and no-object, masks, matches, losses and
gradients.

Weights come by the table that converts the authors' files. The maps of the backbone are
those of the file, and so are the points at which masks are compared.
"""

import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import assert_grads, close, nhwc, part

from configs import mask2former
from mlseg_jax.models.backbones.resnet import ResNet
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.pretrained.formats import FORMATS
from mlseg_jax.pretrained.mapping import to_ours
from mlseg_jax.tasks import regions

GOLDEN = pathlib.Path(__file__).parent / "golden" / "frameworks"
CLASSES, KEPT = 7, 4
SOURCE = FORMATS["mask2former"]
FORWARD = ("region_mlseg_clips_5",)
"""Files whose gradients are compared only of what stands behind the selection: to
compile the others takes seconds, and frames are many or two by the same lines.
"""
BEHIND = ("decoder/no_object", "rank_norm/scale", "rank_norm/bias")

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def make_config(k):
    config = mask2former.get_config("dataset=ade20k,backbone=resnet50")
    sizes = dict(embed_dim=8, num_heads=2)
    with config.unlocked():
        config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        config.data.num_classes, config.selection.k = CLASSES, k
        config.model.backbone.update(embed_dim=1, depths=(1, 1, 1, 1))
        small = dict(num_groups=4, depth=1, mlp_dim=12)
        config.model.pixel_decoder.update(sizes | small)
        small = dict(num_queries=5, depth=4, mlp_dim=10)
        config.model.decoder.update(sizes | small)
        config.model.multilabel_head.update(embed_dim=12, num_heads=2, dropout_rate=0.0)
        config.loss.regions.num_points = 24
    return config


@functools.cache
def converted(k):
    """The configuration and model of a K, and what it learns outside the backbone."""
    config = make_config(k)
    model = FunctionalModel.build(config, CLASSES)
    learned = to_our_names(weights(k), config, model)
    return config, model, {path: jnp.asarray(x.copy()) for path, x in learned.items()}


def bind(model, learned):
    """With a backbone of zeros, for it is not called."""
    shapes = {path: leaf.shape for path, leaf in model.shapes.items()}
    others = {k: jnp.zeros(v) for k, v in shapes.items() if k not in learned}
    return model.bind(learned | others)


def weights(k):
    """By their names; the number of a K stands before those that depend on it."""
    arrays = part(load("region_mlseg"), "param")
    own = {name.removeprefix(f"{k}/"): x for name, x in arrays.items()}
    return {name: x for name, x in own.items() if "/" not in name}


def gradients(case, k):
    """One vector, taken apart as the weights are."""
    vector, found = load(case)[f"grad:{k}"], {}
    for name, array in weights(k).items():
        if name != "criterion.empty_weight":
            found[name] = vector[: array.size].reshape(array.shape)
            vector = vector[array.size :]
    assert not vector.size
    return found


def to_our_names(arrays, config, model):
    shapes = {
        path: leaf.shape
        for path, leaf in model.shapes.items()
        if not path.startswith("backbone/")
    }
    arrays, rows = SOURCE.rename(arrays), SOURCE.rows(config)
    mapped = to_ours(arrays, rows, shapes, dropped=SOURCE.dropped)
    assert set(mapped.dropped) <= {"criterion.empty_weight"}
    return mapped.arrays


def blank(inputs):
    """Pictures or clips of the size of the segments' maps."""
    return jnp.zeros((*inputs["segments"].shape, 3))


@functools.cache
def encoded(case):
    """Labels and regions of a file, which are the same for every K, and what takes
    their gradients back to the parameters.
    """
    _, model, learned = converted(CLASSES)
    norm = {path: x for path, x in learned.items() if path.startswith("rank_norm/")}
    learned = {path: x for path, x in learned.items() if path not in norm}
    inputs = part(load(case), "input")
    maps = [FeatureMap(jnp.asarray(nhwc(inputs[f"map{i}"]))) for i in range(4)]

    @jax.jit
    def encode(learned, maps):
        with mock.patch.object(ResNet, "__call__", lambda *_: tuple(maps)):
            # A key means all predictions; nothing is dropped at rates of 0.
            return bind(model, learned | norm).encode(
                blank(inputs), rng=jax.random.key(0)
            )

    if case in FORWARD:
        return encode(learned, maps), None
    labels, back = jax.vjp(lambda learned: encode(learned, maps), learned)
    return labels, jax.jit(back)


def spy(name, seen):
    """What `regions` calls by that name, and what comes of it."""
    real = getattr(regions, name)

    def call(*args, **more):
        result = real(*args, **more)
        seen[name] = args, result
        return result

    return mock.patch.object(regions, name, call)


def file_points(points, prediction, example, stream, count):
    """The points of the file, where a step would draw some."""
    return points[prediction, example, stream, :count]


@functools.cache
def trained(case, k):
    """The loss of a file for a K, what it is made of, and gradients."""
    config, model, learned = converted(k)
    labels, back = encoded(case)
    inputs = part(load(case), "input")
    batch = {
        "image": blank(inputs),
        "masks": inputs["segments"],
        "segment_classes": inputs["classes"],
    }

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(learned, labels, batch, points):
        draw, seen = jax.tree_util.Partial(file_points, points), {}
        with (
            # The encoder has run already.
            mock.patch.object(MLSeg, "_encode", lambda *_: ((), labels)),
            mock.patch.object(regions, "random_points", lambda _: draw),
            spy("make_targets", seen),
            spy("region_losses", seen),
        ):
            total, logs = regions.loss(
                bind(model, learned), batch, config, jax.random.key(0)
            )
        (*_, selection), _ = seen["make_targets"]
        (_, logits, *_), losses = seen["region_losses"]
        return total, (logs, selection.class_ids, logits, losses.queries)

    points = inputs["points"]
    (total, made), (own, through) = jax.jit(run)(learned, labels, batch, points)
    if back is None:
        return total, made, {path: own[path] for path in BEHIND}
    own, (earlier,) = jax.device_get((own, back(through)))
    grads = {path: own[path] + earlier.get(path, 0.0) for path in own}
    return total, made, grads


@pytest.mark.parametrize(
    "case, k",
    [
        ("pictures", KEPT),
        ("pictures", CLASSES),
        ("clips_2", KEPT),
        ("clips_2", CLASSES),
        ("clips_5", CLASSES),
    ],
)
def test_training(case, k):
    case = f"region_mlseg_{case}"
    expected = part(load(case), "output")
    labels, _ = encoded(case)
    close(labels.scores, expected["scores"], 5e-5)
    found, masks = labels.elements, expected["masks"]
    grids = found.grids.reshape(*masks.shape[:1], *masks.shape[3:], -1)
    made = np.einsum("bpnd,bthwd->bpnthw", found.mask_embeddings, grids)
    close(made, masks, 5e-5)

    total, (logs, class_ids, logits, queries), grads = trained(case, k)
    np.testing.assert_array_equal(class_ids, expected[f"indices_{k}"])
    close(logits, expected[f"logits_{k}"], 5e-5)
    np.testing.assert_array_equal(queries, expected[f"queries_{k}"])
    parts = [logs[f"train/final_{name}"] for name in ("class", "mask", "dice")]
    close(parts, expected[f"parts_{k}"][-1], 5e-5)
    close(logs["loss/multilabel"], expected[f"multilabel_{k}"], 2e-5)
    close(total, expected[f"loss_{k}"], 2e-5)
    config, model, _ = converted(k)
    wanted = to_our_names(gradients(case, k), config, model)
    assert case in FORWARD or set(grads) == set(wanted)
    assert_grads({path: wanted[path] for path in grads}, grads, 5e-5)
