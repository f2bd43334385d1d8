"""Forward, losses and gradients against the PyTorch version's golden files."""

import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import segmenter_config

from mlseg_jax.label_selection import SelectionPolicy, labels_to_ranks
from mlseg_jax.losses.multilabel import asymmetric_loss, binary_cross_entropy
from mlseg_jax.losses.pixel import upsampled_cross_entropy
from mlseg_jax.losses.reduce import mean_over_labels, mean_over_pixels
from mlseg_jax.metrics.label_recall import label_histogram
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.mlseg import MLSeg
from mlseg_jax.pretrained import segmenter
from mlseg_jax.pretrained.mapping import to_ours
from mlseg_jax.tasks import semantic
from mlseg_jax.typing import IGNORE

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def load(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {key: file[key] for key in file.files}


def part(golden, kind):
    start = f"{kind}:"
    return {k[len(start) :]: v for k, v in golden.items() if k.startswith(start)}


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def make_config(golden, selection, k):
    sizes = part(golden, "config")
    config = segmenter_config(
        selection,
        int(k),
        **{
            name: int(sizes[name])
            for name in ("embed_dim", "depth", "num_heads", "patch_size")
        },
        image_size=(int(sizes["image_size"]),) * 2,
    )
    with config.unlocked():
        config.model.multilabel_head.downsample = int(sizes.get("downsample", 0))
        config.model.rank_norm.unbiased_variance = selection == "oracle"
        config.loss.multilabel_weight = float(sizes.get("ml_weight", 0.0))
    return config


def converted(golden, model, config, kind="param", part_of_model=""):
    """By the table that converts the release; gradients go the same way."""
    arrays = part(golden, kind)
    if config.model.rank_norm.unbiased_variance:
        for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
            name = "decode_head.mask_norm."
            arrays[name + theirs] = arrays.pop(name + ours)
    shapes = {
        path: leaf.shape
        for path, leaf in model.shapes.items()
        if path.startswith(part_of_model)
    }
    mapped = to_ours(arrays, segmenter.release(config), shapes)
    assert not mapped.dropped
    return jax.tree.map(lambda x: jnp.asarray(x.copy()), mapped.arrays)


def set_up(case, selection, k):
    """The golden arrays, the configuration, the model and its parameters."""
    golden = load(case)
    config = make_config(golden, selection, k)
    model = FunctionalModel.build(config, int(golden["config:num_classes"]))
    return golden, config, model, converted(golden, model, config)


def batch_of(golden, name="labels"):
    labels = golden[f"input:{name}"]
    ignored = labels == golden["config:ignore"]
    return {
        "image": nhwc(golden["input:image"]),
        "label_map": np.where(ignored, IGNORE, labels).astype(np.int32),
    }


def assert_grads(expected, grads, tolerance=3e-5):
    assert set(grads) == set(expected)
    for path, grad in grads.items():
        # The golden ones have 16 significant bits.
        error = np.max(np.abs(grad - expected[path]))
        assert error <= tolerance * np.max(np.abs(expected[path])) + 1e-7, path


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(
        np.asarray(actual), expected, rtol=tolerance, atol=tolerance
    )


def test_every_golden_file_is_used():
    assert set(CASES) == {
        *("vit_even", "vit_odd", "segmenter", "mlseg_pool8", "mlseg_pool_none"),
        *("mlseg_batch3", "oracle", "losses", "sliding", "multi_scale"),
        # test_heads.py
        *("head_decoder", "head_pooling", "oce", "encnet", "essnet"),
        *("head_logits", "query2label"),
        "panoptic",  # test_panoptic_quality.py
    }


# ----------------------------------------------------------------------- the backbone


@pytest.mark.parametrize("case", ["vit_even", "vit_odd"])
def test_backbone(case):
    golden = load(case)
    config = make_config(golden, "complete", 4)
    model = FunctionalModel.build(config, 5)
    params = converted(golden, model, config, part_of_model="backbone/")
    others = {k: jnp.zeros(v.shape) for k, v in model.shapes.items() if k not in params}
    images = jnp.asarray(nhwc(golden["input:image"]))
    cotangent = golden["input:cotangent"]

    def run(params, images, image_size=None):
        bound = model.bind(params | others)
        (features,) = bound.backbone(images, image_size, None)
        return features.grid, features.mask

    def loss(params):
        grid, mask = run(params, images)
        assert mask is None
        tokens = grid.reshape(cotangent.shape)
        return jnp.sum(tokens * cotangent), tokens

    (value, tokens), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(tokens, golden["output:tokens"])
    close(value, golden["output:loss"], 1e-4)
    assert_grads(converted(golden, model, config, "grad", "backbone/"), grads)
    if case == "vit_even":
        return
    # The same picture in the upper left of larger canvases, with anything around it.
    height, width = images.shape[1:3]
    canvas = np.full((3, 48, 64, 3), 1e3, np.float32)
    canvas[:, :height, :width] = images
    inside = np.zeros((1, 48, 64, 1), bool)
    inside[:, :height, :width] = True
    sizes = np.full((3, 2), (height, width), np.int32)
    canvas = np.where(inside, canvas, 0.0)
    grid, mask = jax.jit(run)(params, canvas, sizes)
    rows, columns = golden["output:grid"]
    assert np.sum(mask) == 3 * rows * columns
    close(
        np.asarray(grid)[:, :rows, :columns].reshape(tokens.shape),
        golden["output:tokens"],
    )


# -------------------------------------------------------------------- training's loss


def make_loss(model, config):
    """The task's loss with everything that is golden, and gradients; compiles once."""

    def loss(params, batch):
        call, outputs = MLSeg.__call__, []

        def recorded(*args, **kwargs):
            outputs.append(call(*args, **kwargs))
            return outputs[-1]

        with mock.patch.object(MLSeg, "__call__", recorded):
            total, logs = semantic.loss(model.bind(params), batch, config, None)
        (output,) = outputs
        ranks = labels_to_ranks(batch["label_map"], output.selection)
        pixels = upsampled_cross_entropy(output.logits, ranks)
        valid = mean_over_pixels(pixels, ranks != IGNORE, over="valid")
        return total, (logs, output, ranks, valid.value())

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_segmenter():
    golden, config, model, params = set_up("segmenter", "complete", 4)
    (total, (_, output, ranks, valid)), grads = make_loss(model, config)(
        params, batch_of(golden)
    )
    close(output.logits, nhwc(golden["output:logits"]))
    np.testing.assert_array_equal(ranks, batch_of(golden)["label_map"])
    close(total, golden["output:loss"])
    close(valid, golden["output:loss_valid"])
    assert_grads(converted(golden, model, config, "grad"), grads)


@pytest.mark.parametrize("case", ["mlseg_pool8", "mlseg_pool_none", "mlseg_batch3"])
def test_mlseg(case):
    golden, config, model, params = set_up(case, "top_k", 4)
    batch = batch_of(golden)
    (total, (logs, output, ranks, valid)), grads = make_loss(model, config)(
        params, batch
    )
    close(output.label_scores, golden["output:scores"])
    np.testing.assert_array_equal(output.selection.class_ids, golden["output:indices"])
    close(output.logits, nhwc(golden["output:rank_logits"]))
    presence = label_histogram(jnp.asarray(batch["label_map"]), 11) > 0
    np.testing.assert_array_equal(presence, golden["output:presence"])
    expected = golden["output:rank_labels"]
    expected = np.where(expected == golden["config:ignore"], IGNORE, expected)
    np.testing.assert_array_equal(ranks, expected)
    close(logs["loss/pixel"], golden["output:loss_pixel"])
    close(valid, golden["output:loss_pixel_valid"])
    close(logs["loss/multilabel"], golden["output:loss_multi_label"])
    bce = binary_cross_entropy(output.label_scores, presence)
    close(mean_over_labels(bce).value(), golden["output:loss_multi_label_bce"])
    close(total, golden["output:loss"])
    assert_grads(converted(golden, model, config, "grad"), grads)

    classes = np.full(golden["output:class_logits"].shape, -100.0, np.float32)
    for b, ids in enumerate(golden["output:indices"]):
        classes[b, ids] = np.moveaxis(np.asarray(output.logits[b]), -1, 0)
    close(classes, golden["output:class_logits"])


def test_three_examples_are_three_times_one():
    golden, config, model, params = set_up("mlseg_batch3", "top_k", 4)
    select = SelectionPolicy("top_k", 4).select()

    @jax.jit
    def run(params, image):
        output = model.bind(params)(image, select)
        return output.label_scores, output.selection.class_ids, output.logits

    images = nhwc(golden["input:image"])
    single = [run(params, images[b : b + 1]) for b in range(3)]
    scores, class_ids, logits = (np.concatenate(x) for x in zip(*single, strict=True))
    close(scores, golden["output:scores"])
    np.testing.assert_array_equal(class_ids, golden["output:indices"])
    close(logits, nhwc(golden["output:rank_logits"]))


def test_oracle():
    """Present classes in class order; ranks that pad the selection change nothing."""
    golden, config, model, params = set_up("oracle", "oracle", 11)
    run = functools.partial(make_loss(model, config), params)
    for name in ("", "_one", "_none"):
        (total, (_, output, *_)), grads = run(batch_of(golden, "labels" + name))
        expected = golden["output:indices" + name]
        count = expected.shape[1]
        selection = output.selection
        np.testing.assert_array_equal(selection.class_ids[:, :count], expected)
        np.testing.assert_array_equal(selection.valid[0], np.arange(11) < count)
        logits = nhwc(golden["output:rank_logits" + name])
        close(output.logits[..., :count], logits)
        assert np.all(np.asarray(output.logits[..., count:]) == -100.0)
        close(total, golden["output:loss" + name])
        if not name:
            assert_grads(converted(golden, model, config, "grad"), grads)


def test_losses():
    golden = load("losses")
    scores, small_scores, targets, small_targets = (
        jnp.asarray(golden[f"input:{name}"])
        for name in ("scores", "small_scores", "targets", "small_targets")
    )
    names = [name for name in part(golden, "output") if not name.startswith("small_")]
    for name in names:

        def loss(scores, targets, name=name):
            if name == "bce":
                return mean_over_labels(binary_cross_entropy(scores, targets)).value()
            gamma_negative, gamma_positive, clip = map(float, golden[f"config:{name}"])
            return mean_over_labels(
                asymmetric_loss(
                    scores,
                    targets,
                    gamma_negative=gamma_negative,
                    gamma_positive=gamma_positive,
                    clip=clip,
                )
            ).value()

        value, grad = jax.value_and_grad(loss)(scores, targets > 0)
        close(value, golden[f"output:{name}"])
        np.testing.assert_allclose(grad, golden[f"grad:{name}"], rtol=2e-5, atol=2e-7)
        small = loss(small_scores, small_targets > 0)
        close(small, golden[f"output:small_{name}"])
