"""Backbones and decoders against the modules of other toolboxes."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from test_golden import assert_grads, close, nhwc, part

from mlseg_jax.models.backbones.beit import Beit
from mlseg_jax.models.backbones.swin import Swin
from mlseg_jax.models.backbones.tresnet import TResNet
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.build import flat_parameters
from mlseg_jax.models.decoders.upernet import UPerNetDecoder
from mlseg_jax.models.interfaces import FeatureMap
from mlseg_jax.pretrained import beit, swin, tresnet, upernet, vit
from mlseg_jax.pretrained.mapping import to_ours

GOLDEN = pathlib.Path(__file__).parent / "golden" / "frameworks"

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def load(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {key: file[key] for key in file.files}


def ours(arrays, shapes, rows, rename, part="backbone"):
    """By the tables that convert published weights, which are of whole models."""
    mapped = to_ours(
        rename(arrays),
        rows,
        {f"{part}/{path}": shape for path, shape in shapes.items()},
        dropped=beit.BEIT_DROPPED,
    )
    return {
        path.removeprefix(f"{part}/"): np.ascontiguousarray(array)
        for path, array in mapped.arrays.items()
    }


def mmsegmentation_names(arrays):
    return {f"backbone.{name}": array for name, array in arrays.items()}


GATED = ConfigDict({"model": {"backbone": {"gated": True}}})
PLAIN = ConfigDict({"model": {"backbone": {}}})
SWIN = swin.mmsegmentation(PLAIN), mmsegmentation_names
SWIN_CLASSIFIER = (
    swin.hugging_face(
        ConfigDict({"model": {"backbone": {"num_norms": 1, "depths": (2, 2)}}})
    ),
    swin.hugging_face_names,
)
DINOV2 = beit.dinov2(PLAIN), beit.dinov2_names
DINOV2_GIANT = beit.dinov2(GATED), beit.dinov2_names
TRESNET = tresnet.tresnet(PLAIN), tresnet.names
BEIT = beit.beit(PLAIN), vit.hugging_face_names
UPERNET = (
    upernet.mmsegmentation(PLAIN),
    lambda arrays: {f"decode_head.{name}": array for name, array in arrays.items()},
    "decoder",
)


class Functional:
    """A module apart from its numbers, as ``build.FunctionalModel``."""

    def __init__(self, make):
        self.graph, self.abstract = nnx.split(nnx.eval_shape(make))
        self.shapes = {k: v.shape for k, v in flat_parameters(self.abstract).items()}
        self.stats = flat_parameters(nnx.state(self.abstract, nnx.BatchStat))

    def bind(self, params):
        state = [
            (path, variable.replace(params["/".join(map(str, path))]))
            for path, variable in nnx.to_flat_state(self.abstract)
        ]
        return nnx.merge(self.graph, nnx.from_flat_state(state))


def check_backbone(golden, model, table):
    """Maps and gradients; then the same pictures on larger canvases."""
    params = ours(part(golden, "param"), model.shapes, *table)
    params = jax.tree.map(jnp.asarray, params)
    maps = [golden[k] for k in sorted(golden) if k.startswith("output:map")]
    cotangents = [golden[k] for k in sorted(golden) if k.startswith("input:cotangent")]
    images = nhwc(golden["input:image"])

    stats = {path: params.pop(path) for path in model.stats}

    def loss(params, images):
        features = model.bind(params | stats)(images, None, None)
        assert all(f.grid_size is None for f in features)
        terms = [
            jnp.sum(f.grid * nhwc(c)) for f, c in zip(features, cotangents, strict=True)
        ]
        return sum(terms), [f.grid for f in features]

    (value, grids), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, images
    )
    for grid, expected in zip(grids, maps, strict=True):
        close(grid, nhwc(expected), 5e-5)
    close(value, golden["output:loss"], 1e-4)
    shapes = {path: model.shapes[path] for path in params}
    assert_grads(ours(part(golden, "grad"), shapes, *table), grads)
    return params, images, grids


def check_canvas(model, params, images, grids, canvas):
    """The same pictures in a corner of a canvas, and a smaller one beside them."""
    height, width = images.shape[1:3]
    on_canvas = np.zeros((len(images) + 1, *canvas, 3), np.float32)
    on_canvas[:-1, :height, :width] = images
    small = images[:1, : height // 2, : width // 3]
    on_canvas[-1, : height // 2, : width // 3] = small[0]
    sizes = np.full((len(on_canvas), 2), (height, width), np.int32)
    sizes[-1] = small.shape[1:3]
    run = jax.jit(lambda params, x, sizes=None: model.bind(params)(x, sizes, None))
    features, alone = run(params, on_canvas, sizes), run(params, small)
    for feature, grid, single in zip(features, grids, alone, strict=True):
        rows, columns = grid.shape[1:3]
        np.testing.assert_array_equal(feature.grid_size[0], (rows, columns))
        np.testing.assert_array_equal(feature.grid_size[-1], single.grid.shape[1:3])
        close(feature.grid[:-1, :rows, :columns], grid, 5e-5)
        rows, columns = single.grid.shape[1:3]
        close(feature.grid[-1:, :rows, :columns], single.grid, 5e-5)


def make_swin(golden, **more):
    sizes = part(golden, "config")
    return Functional(
        lambda: Swin(
            embed_dim=int(sizes["embed_dim"]),
            depths=tuple(sizes["depths"].tolist()),
            num_heads=tuple(sizes["num_heads"].tolist()),
            window_size=int(sizes["window_size"]),
            mlp_ratio=2,
            rngs=nnx.Rngs(0),
            **more,
        )
    )


@pytest.mark.parametrize("case, canvas", [("swin", (64, 72)), ("swin_small", (28, 36))])
def test_swin(case, canvas):
    golden = load(case)
    model = make_swin(golden)
    params, images, grids = check_backbone(golden, model, SWIN)
    check_canvas(model, params, images, grids, canvas)


@pytest.mark.parametrize("case", ["swin_classifier", "swin_classifier_small"])
def test_swin_of_classifiers(case):
    """Maps larger than the window, of its size, and smaller."""
    golden = load(case)
    model = make_swin(golden, num_norms=1, shift_small_maps=False)
    check_backbone(golden, model, SWIN_CLASSIFIER)
    assert not nnx.merge(model.graph, model.abstract).any_canvas


def test_tresnet():
    """Of grids of 9x13, 5x7, 3x4 and 2x2."""
    golden = load("tresnet")
    sizes = plain_config(golden)
    sizes["bottlenecks"] = tuple(map(bool, sizes["bottlenecks"]))
    model = Functional(lambda: TResNet(**sizes, rngs=nnx.Rngs(0)))
    check_backbone(golden, model, TRESNET)


def plain_config(golden):
    """Sizes as the constructors take them."""
    sizes = part(golden, "config")
    sizes.pop("batch")
    flags = {"gated": bool(sizes.pop("gated"))} if "gated" in sizes else {}
    return flags | {
        key: int(x) if x.ndim == 0 else tuple(x.tolist()) for key, x in sizes.items()
    }


@pytest.mark.parametrize(
    "case, canvas", [("dinov2", (36, 33)), ("dinov2_giant", (24, 40))]
)
def test_dinov2(case, canvas):
    golden = load(case)
    sizes = plain_config(golden) | {"layer_scale": 1.0}
    if sizes.get("num_registers"):
        # As the transformers library does it for these models alone.
        sizes["position_resize"] = "antialiased_bicubic"
    model = Functional(lambda: ViT(**sizes, rngs=nnx.Rngs(0)))
    table = DINOV2_GIANT if sizes["gated"] else DINOV2
    params, images, grids = check_backbone(golden, model, table)
    check_canvas(model, params, images, grids, canvas)


@pytest.mark.parametrize("case", ["beit", "beit_resized"])
def test_beit(case):
    golden = load(case)
    sizes = plain_config(golden) | {"layer_scale": 0.1}
    model = Functional(lambda: Beit(**sizes, rngs=nnx.Rngs(0)))
    _, images, grids = check_backbone(golden, model, BEIT)
    backbone = nnx.merge(model.graph, model.abstract)
    lengths = [backbone.grid_lengths(side) for side in images.shape[1:3]]
    assert [grid.shape[1:3] for grid in grids] == list(zip(*lengths, strict=True))
    assert not backbone.any_canvas


def test_upernet():
    """In evaluation, in training with gradients, and on canvases."""
    golden = load("upernet")
    sizes = plain_config(golden | {"config:batch": np.int32(3)})
    make = functools.partial(UPerNetDecoder, **sizes, dropout_rate=0.0)
    model = Functional(lambda: make(rngs=nnx.Rngs(0)))
    params = ours(part(golden, "param"), model.shapes, *UPERNET)
    params = jax.tree.map(jnp.asarray, params)
    stats = {path: params.pop(path) for path in model.stats}
    maps = [nhwc(golden[f"input:map{i}"]) for i in range(4)]

    def embed(params, maps, sizes, rng=None):
        sizes = [None] * 4 if sizes is None else sizes
        features = tuple(map(FeatureMap, maps, sizes))
        return model.bind(params | stats).embed(features, rng)

    def loss(params):
        inputs = list(map(jnp.asarray, maps))
        grid = embed(params, inputs, None, jax.random.key(0)).elements.grid
        return jnp.sum(grid * nhwc(golden["input:cotangent"])), grid

    (value, trained), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(trained, nhwc(golden["output:trained"]), 5e-5)
    close(value, golden["output:loss"], 1e-4)
    shapes = {path: model.shapes[path] for path in params}
    assert_grads(ours(part(golden, "grad"), shapes, *UPERNET), grads)

    canvases = [
        np.pad(x, [(0, 0), (0, 3), (0, 2), (0, 0)], constant_values=9.0) for x in maps
    ]
    sizes = [np.tile(np.asarray([x.shape[1:3]], np.int32), (3, 1)) for x in maps]
    for inputs, real in ((maps, None), (canvases, sizes)):
        found = jax.jit(embed)(params, inputs, real).elements.grid
        expected = nhwc(golden["output:evaluated"])
        close(found[:, : expected.shape[1], : expected.shape[2]], expected, 5e-5)
