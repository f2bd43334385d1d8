"""The whole model of Segmenter: selections, canvases, types, initial values, counts."""

import functools
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from shrink import NUM_CLASSES, random_parameters, segmenter_config

from configs import segmenter
from mlseg_jax.label_selection import (
    UNSELECTED_LOGIT,
    Selection,
    SelectionPolicy,
)
from mlseg_jax.models.build import (
    MULTILABEL_HEADS,
    FunctionalModel,
    initial_parameters,
)
from mlseg_jax.models.mlseg import clear_padding, normalise
from mlseg_jax.tasks import semantic
from mlseg_jax.typing import IGNORE

C = NUM_CLASSES
pytestmark = pytest.mark.usefixtures("quick_compiles")


HEADS = {
    "projected_encoder": dict(
        dropout_rate=0.0, share_embeddings=False, class_projection=True
    )
}
"""What heads need beside what ``configs/segmenter.py`` has."""


def make_config(head="transformer_encoder", rank_norm="affine", downsample=8, **more):
    config = segmenter_config(**({"depth": 1} | more))
    with config.unlocked():
        config.model.multilabel_head = ml_collections.ConfigDict(
            config.model.multilabel_head.to_dict()
            | HEADS.get(head, {})
            | {"name": head, "downsample": downsample}
        )
        config.model.rank_norm.kind = rank_norm
        config.model.decoder.depth = 1
    return config


def make_images(batch=2, height=22, width=27, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, height, width, 3)).astype(np.float32)


# -------------------------------------------------------------------------- selections


@functools.cache
def mlseg(downsample, head="transformer_encoder"):
    config = make_config(head, downsample=downsample)
    model = FunctionalModel.build(config, C)
    return config, model, random_parameters(model)


def test_invalid_ranks_change_nothing():
    _, model, parameters = mlseg(8)

    @jax.jit
    def run(parameters, images):
        bound = model.bind(parameters)
        labels = bound.encode(images)
        ids = jnp.asarray([[3, 1, 7], [0, 10, 2]])
        valid = jnp.asarray([[True] * 3 + [False] * 2] * 2)
        padded = jnp.pad(ids, [(0, 0), (0, 2)], constant_values=5)
        return (
            bound.classify(labels, Selection(ids, None, C)).logits,
            bound.classify(labels, Selection(padded, valid, C)).logits,
        )

    logits, padded = run(parameters, make_images())
    np.testing.assert_allclose(padded[..., :3], logits, rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(padded[..., 3:], UNSELECTED_LOGIT)


@pytest.mark.parametrize(
    "head, downsample",
    [("transformer_encoder", 0)]
    + [(head, 8) for head in MULTILABEL_HEADS if head != "none"],
)
def test_the_padding_of_a_canvas_is_not_seen(head, downsample):
    """One compilation for pictures of all sizes, whatever lies beside a picture."""
    _, model, parameters = mlseg(downsample, head)
    select = SelectionPolicy("top_k", 4).select()

    @jax.jit
    def run(parameters, images, sizes=None):
        output = model.bind(parameters)(images, select, image_size=sizes)
        return output.label_scores, output.selection.class_ids, output.logits

    sizes = [(22, 27), (24, 32), (9, 13)]
    noise = 100 * np.random.default_rng(1).normal(size=(3, 32, 48, 3))
    canvas = noise.astype(np.float32)
    images = [make_images(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    for b, (height, width) in enumerate(sizes):
        canvas[b, :height, :width] = images[b]
    results = run(parameters, canvas, np.asarray(sizes, np.int32))
    for b in (0, 1) if downsample == 0 else (2,):
        height, width = sizes[b]
        scores, class_ids, logits = run(parameters, images[b][None])
        rows, columns = -(-height // 4), -(-width // 4)
        np.testing.assert_allclose(results[0][b], scores[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(results[1][b], class_ids[0])
        np.testing.assert_allclose(
            results[2][b, :rows, :columns], logits[0], rtol=1e-3, atol=1e-4
        )
    assert all(np.all(np.isfinite(x)) for x in results)


@pytest.mark.parametrize("pixel_mean", ["all", "valid"])
def test_a_batch_whose_labels_were_all_missed(pixel_mean):
    config, model, parameters = mlseg(8)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.loss.pixel_mean = pixel_mean
    images = make_images()
    scores = jax.jit(lambda p, x: model.bind(p).encode(x).scores)(parameters, images)
    worst = np.asarray(jnp.argmin(scores, axis=1), np.int32)
    labels = np.full((2, 22, 27), IGNORE, np.int32)
    labels[0, :5], labels[1] = worst[0], worst[1]
    batch = {"image": images, "label_map": labels}
    (loss, logs), grads = jax.jit(
        jax.value_and_grad(
            lambda p, b: semantic.loss(model.bind(p), b, config, None), has_aux=True
        )
    )(parameters, batch)
    assert logs["loss/pixel"] == 0.0 and loss > 0.0
    assert logs["train/pixel_recall_at_k"] == logs["train/image_recall_at_k"] == 0.0
    assert all(np.all(np.isfinite(grad)) for grad in grads.values())
    # Only the multi-label loss pulls: nothing reaches what follows the selection.
    for path, grad in grads.items():
        after = path.startswith(("decoder", "rank_norm"))
        after = after and not path.startswith("decoder/feature_projection")
        assert np.any(grad != 0) != after, path


def test_selection_recall():
    histogram = jnp.asarray([[4, 0, 6, 0], [0, 0, 0, 0]])
    selection = Selection(jnp.asarray([[2, 1], [0, 1]]), None, 4)
    pixel, image = semantic.selection_recall(histogram, selection)
    np.testing.assert_allclose((pixel, image), ([0.6, 1], [0.5, 1]))


def test_padding_is_zero_once_normalised():
    """Method.md 12.2; 127.5 is no colour of a byte, and 128 is not 0 then."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (2, 5, 7, 3)), jnp.uint8)
    size = jnp.asarray([[5, 7], [3, 4]], jnp.int32)
    mean, std = (127.5, 120.25, 100.0), (127.5, 58.4, 57.0)
    cleared = clear_padding(images, size, mean)
    found = normalise(cleared, None, mean, std)
    expected = np.array((np.asarray(images, np.float32) - mean) / np.asarray(std))
    expected[1, 3:] = expected[1, :, 4:] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert not np.any(found[1, 3:]) and not np.any(found[1, :, 4:])


# ------------------------------------------------------------------------------- types


def test_bfloat16_stays_near_float32():
    config, model, parameters = mlseg(8)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "bfloat16"
    rough_model = FunctionalModel.build(config, C)
    assert all(leaf.dtype == jnp.float32 for leaf in rough_model.shapes.values())
    selection = Selection(jnp.asarray([[3, 1, 7, 0], [0, 10, 2, 9]]), None, C)

    def run(model):
        call = lambda p, x: model.bind(p)(x, lambda scores: selection)  # noqa: E731
        output = jax.jit(call)(parameters, make_images())
        assert output.logits.dtype == output.label_scores.dtype == jnp.float32
        return output.label_scores, output.logits

    for exact, rough in zip(run(model), run(rough_model), strict=True):
        error = np.sqrt(np.mean((exact - rough) ** 2)) / np.std(exact)
        assert 0 < error < 0.04
        assert np.corrcoef(np.ravel(exact), np.ravel(rough))[0, 1] > 0.998


def test_initial_values():
    config = make_config()
    parameters = jax.jit(lambda key: initial_parameters(config, C, key)[0])(
        jax.random.key(0)
    )
    model = FunctionalModel.build(config, C)
    assert {k: v.shape for k, v in parameters.items()} == {
        k: v.shape for k, v in model.shapes.items()
    }
    for path, value in parameters.items():
        deviation = float(np.std(value))
        if path.endswith("scale"):
            assert np.all(value == 1), path
        elif re.fullmatch("backbone/.*mlp_(in|out)/bias", path):
            assert 0 < deviation < 1e-5, path
        elif path.endswith("bias") and "classifier" not in path:
            assert np.all(value == 0), path
        elif path.startswith(("decoder/patch", "decoder/class")):
            assert 0.2 < deviation < 0.3, path  # 16 ** -0.5
        elif "patch_projection" not in path and "classifier" not in path:
            assert 0.01 < deviation < 0.03, path


# ------------------------------------------------------------------ published sizes


def count(shapes, start=""):
    return sum(leaf.size for path, leaf in shapes.items() if path.startswith(start))


def test_parameter_breakdown():
    """method.md 14.5, ViT-B and ViT-L."""
    tables = {
        ("coco_stuff", "vit_b16"): (
            *(590_592, 768, 787_200, 7_087_872, 1_536, 86_434_560, 131_328, 590_592),
            *(1_179_648, 14_175_744, 1_536, 100, 7_087_872, 1_536, 131_499),
        ),
        ("ade20k", "vit_l16"): (
            *(787_456, 1_024, 1_639_424, 12_596_224, 2_048, 304_739_328, 153_600),
            *(1_049_600, 2_097_152, 25_192_448, 2_048, 100, 12_596_224, 2_048, 153_750),
        ),
    }
    for (dataset, backbone), expected in tables.items():
        config = segmenter.get_config(f"dataset={dataset},backbone={backbone}")
        depth = config.model.backbone.depth
        with config.unlocked():
            config.model.backbone.scan = True
        shapes = FunctionalModel.build(config, config.data.num_classes).shapes
        pieces = (
            *("backbone/patch_projection", "backbone/class_token"),
            *("backbone/position_table", "backbone/blocks", "backbone/norm"),
            *("backbone/", "class_embeddings", "decoder/feature_projection"),
            *("decoder/*projection", "decoder/blocks", "decoder/norm", "rank_norm"),
            *("multilabel_head/block", "multilabel_head/norm"),
            "multilabel_head/classifier",
        )
        both = count(shapes, "decoder/patch_") + count(shapes, "decoder/class_")
        found = [both if "*" in p else count(shapes, p) for p in pieces]
        found[3] //= depth
        assert tuple(found) == expected
