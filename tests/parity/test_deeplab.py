"""DeepLabv3 against mmsegmentation's modules: maps, logits, gradients, statistics."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from shrink import deeplabv3_config
from test_golden import assert_grads, close, nhwc, part

from mlseg_jax.label_selection import select_complete
from mlseg_jax.models.build import FunctionalModel, statistics
from mlseg_jax.pretrained import resnet
from mlseg_jax.pretrained.mapping import CONV, SAME, Change, Row, norm, to_ours

GOLDEN = pathlib.Path(__file__).parent / "golden" / "frameworks"
CLASSES = 5
pytestmark = pytest.mark.usefixtures("quick_compiles")

CLASS_ROWS = Change(lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None])
COLUMN = Change(lambda x: x[:, None], lambda x: x[:, 0])


def unit(theirs, ours):
    return [
        Row(f"{theirs}.conv.weight", f"{ours}/conv/kernel", CONV),
        *norm(f"{theirs}.bn", f"{ours}/norm"),
        Row(f"{theirs}.bn.running_mean", f"{ours}/norm/mean", SAME),
        Row(f"{theirs}.bn.running_var", f"{ours}/norm/var", SAME),
    ]


ROWS = [
    *resnet.resnet(ConfigDict({"model": {"backbone": {}}})),
    *unit("decode_head.image_pool.1", "decoder/image_pool"),
    *unit("decode_head.aspp_modules.{i}", "decoder/branches/{i}"),
    *unit("decode_head.bottleneck", "decoder/bottleneck"),
    Row("decode_head.conv_seg.weight", "class_embeddings", CLASS_ROWS),
    Row("decode_head.conv_seg.bias", "class_biases", COLUMN),
    *unit("auxiliary_head.convs.0", "auxiliary_head/conv"),
    Row("auxiliary_head.conv_seg.weight", "auxiliary_head/class_weights", CLASS_ROWS),
    Row("auxiliary_head.conv_seg.bias", "auxiliary_head/class_biases", SAME),
]


def ours(arrays, shapes):
    shapes = {path: leaf.shape for path, leaf in shapes.items()}
    mapped = to_ours(resnet.names(arrays), ROWS, shapes)
    return {path: jnp.asarray(array) for path, array in mapped.arrays.items()}


@functools.cache
def load(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {key: file[key] for key in file.files}


def make_model(deep):
    config = deeplabv3_config(
        "complete",
        embed_dim=4,
        depths=(1, 2, 2),
        stem="deep" if deep else "plain",
        strides=(1, 1, 1) if deep else (1, 2, 2),
        dilations=(1, 2, 4) if deep else (1, 1, 1),
        contract_dilation=deep,
    )
    with config.unlocked():
        config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        config.model.decoder.embed_dim = 6
        config.model.auxiliary_head.update(level=1, embed_dim=4)
    return FunctionalModel.build(config, CLASSES)


@pytest.mark.parametrize("case", ["deeplab_v1c", "deeplab_train", "deeplab_plain"])
def test_deeplab(case):
    golden = load(case)
    model = make_model(bool(golden["config:deep"]))
    arrays = ours(part(golden, "param"), model.shapes)
    params = {path: arrays[path] for path in model.learned}
    stats = {path: x for path, x in arrays.items() if path not in params}
    weights = {
        key.removeprefix("weight_"): nhwc(x)
        for key, x in part(golden, "input").items()
        if key.startswith("weight_")
    }
    # Every dropout rate is 0, so this only says whether batch norms measure.
    rng = jax.random.key(0) if golden["config:train"] else None

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, images):
        bound = model.bind(params | stats)
        features, labels = bound._encode(images, None, rng)
        head = bound.auxiliary_head
        auxiliary = head(features, rng).grid @ head.class_weights[...].T
        outputs = {
            "last": features[-1].grid,
            "logits": bound.classify(labels, select_complete(labels.scores)).logits,
            "auxiliary": auxiliary + head.class_biases[...][None, None, None],
        }
        loss = sum(jnp.sum(weights[key] * outputs[key]) for key in outputs)
        return loss, (outputs, statistics(bound))

    (loss, (outputs, after)), grads = jax.jit(run)(params, nhwc(golden["input:image"]))
    for key, found in outputs.items():
        close(found, nhwc(golden[f"output:{key}"]), 1e-4)
    close(loss, golden["output:loss"], 1e-4)
    assert_grads(ours(part(golden, "grad"), model.learned), grads)
    if rng is not None:
        start = "after."
        expected = {
            k.removeprefix(start): x
            for k, x in part(golden, "output").items()
            if k.startswith(start)
        }
        expected = ours(expected, {k: model.shapes[k] for k in stats})
        for path, value in after.items():
            close(value, expected[path], 1e-4)
