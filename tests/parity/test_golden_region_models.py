"""Mask2Former and MaskFormer against the transformers library's modules."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_golden import assert_grads, close, nhwc, part

from configs import mask2former, maskformer
from mlseg_jax.label_selection import select_complete
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import regions
from mlseg_jax.pretrained.mapping import to_ours

GOLDEN = pathlib.Path(__file__).parent / "golden" / "frameworks"
CLASSES, QUERIES = 7, 5

pytestmark = pytest.mark.usefixtures("quick_compiles")

SWIN = dict(
    embed_dim=4, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), window_size=3, mlp_ratio=1
)
CASES = {
    # recipe, table of names, layers, backbone
    "mask2former": (mask2former, regions.hugging_face_mask2former, 4, "swin_demo"),
    "maskformer": (maskformer, regions.hugging_face_maskformer, 3, "swin_demo"),
    # Its batch statistics are frozen.
    "maskformer_resnet": (
        *(maskformer, regions.hugging_face_maskformer, 3),
        "resnet50",
    ),
}
BACKBONES = {"swin_demo": SWIN, "resnet50": dict(embed_dim=2, depths=(1, 2, 1, 1))}


@functools.cache
def load(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {key: file[key] for key in file.files}


def make_config(case) -> ConfigDict:
    recipe, _, depth, backbone = CASES[case]
    config = recipe.get_config(
        f"dataset=sign_scenes,backbone={backbone},selection=complete"
    )
    sizes = dict(embed_dim=16, num_heads=2, mlp_dim=16)
    with config.unlocked():
        config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        config.model.backbone.update(BACKBONES[backbone])
        config.model.pixel_decoder.update(sizes | {"num_groups": 4, "depth": 2})
        config.model.decoder.update(sizes | {"num_queries": QUERIES, "depth": depth})
        for part in (config.model.pixel_decoder, config.model.decoder):
            part.dropout_rate = 0.0
    return config


@functools.cache
def converted(case):
    config = make_config(case)
    model = FunctionalModel.build(config, CLASSES)
    golden, rows = load(case), CASES[case][1](config)

    def ours(kind):
        arrays = regions.hugging_face_names(part(golden, kind))
        shapes = {path: leaf.shape for path, leaf in model.shapes.items()}
        # Gradients of the backbone are not there.
        optional = "backbone/.*" if kind == "grad" else ""
        mapped = to_ours(arrays, rows, shapes, optional=optional)
        assert not mapped.dropped
        return {k: jnp.asarray(x.copy()) for k, x in mapped.arrays.items()}

    return model, golden, ours("param"), ours("grad")


@pytest.mark.parametrize("case", ["mask2former", "maskformer"])
def test_all_predictions_and_gradients(case):
    """Three pictures whose sides 32 does not divide."""
    model, golden, params, expected = converted(case)

    backbone = {path: params[path] for path in params.keys() - expected.keys()}
    params = {path: params[path] for path in expected}

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, images):
        params = params | backbone
        # A key means all predictions; nothing is dropped at rates of 0.
        output = model.bind(params)(images, select_complete, rng=jax.random.key(0))
        found = output.regions
        masks = [found.mask_logits(i) for i in range(found.num_predictions)]
        masks = jnp.stack(masks, axis=1)
        total = jnp.sum(output.class_logits * golden["input:class_cotangent"])
        total += jnp.sum(masks * golden["input:mask_cotangent"])
        return total, (output.class_logits, masks)

    images = nhwc(golden["input:image"])
    (value, (classes, masks)), grads = jax.jit(loss)(params, images)
    close(classes, golden["output:classes"], 5e-5)
    close(masks, golden["output:masks"], 5e-5)
    close(value, golden["output:loss"], 1e-4)
    assert_grads(expected, grads)


@pytest.mark.parametrize("case", CASES)
def test_canvases(case):
    """The last prediction of one picture, in a corner of a larger canvas."""
    model, golden, params, _ = converted(case)
    images = nhwc(golden["input:small_image"])
    height, width = images.shape[1:3]
    canvas = np.full((2, height + 21, width + 10, 3), 9.0, np.float32)
    canvas[0, :height, :width] = images[0]
    sizes = np.asarray([(height, width), canvas.shape[1:3]], np.int32)

    @jax.jit
    def run(params, images, sizes):
        output = model.bind(params)(images, select_complete, image_size=sizes)
        return output.class_logits[:, 0], output.regions.mask_logits()

    classes, masks = run(params, canvas, sizes)
    close(classes[:1], golden["output:small_classes"][:, -1], 5e-5)
    expected = golden["output:small_masks"][:, -1]
    rows, columns = expected.shape[2:]
    close(masks[:1, :, :rows, :columns], expected, 5e-5)
