"""Queries and classes among the tokens of an encoder: EoMT and encoder-only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import (
    NUM_CLASSES,
    random_parameters,
    use_tiny_backbone,
    use_tiny_decoder,
)
from test_layers import assert_close, normal
from test_mlseg import make_config, make_images

from configs import encoder_only, eomt, linear, segmenter
from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import Selection, select_top_k
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.decoders.eomt import EomtDecoder, mask_share
from mlseg_jax.models.encoder_only import held_back
from mlseg_jax.models.flops import count_macs
from mlseg_jax.models.layers.contexts import PlacedTokens
from mlseg_jax.models.layers.rotary import grid_rotation

pytestmark = pytest.mark.usefixtures("quick_compiles")


def test_masks_cease_step_by_step():
    start, end, steps = 3.0, 8.0, 12
    shares = start / steps, end / steps
    for step in range(steps):
        expected = (1 - min(max(step - start, 0) / (end - start), 1)) ** 0.9
        assert abs(mask_share(jnp.float32(step / steps), *shares) - expected) < 1e-6
    assert mask_share(jnp.float32(3 / steps), *shares) == 1.0
    assert mask_share(jnp.float32(8 / steps), *shares) == 0.0


def naive(query, key, value, angles, num_others, seen):
    """Every score of every head; pairs of channels as complex numbers."""

    def turned(x):
        half = x.shape[-1] // 2
        pairs = (x[..., :half] + 1j * x[..., half:]).copy()
        patches = slice(num_others, num_others + angles.shape[1])
        pairs[:, patches] *= np.exp(1j * angles)[:, :, None]
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    scores = np.einsum("blhd,bmhd->bhlm", turned(query), turned(key))
    scores = np.where(seen[:, None], scores * query.shape[-1] ** -0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhlm,bmhd->blhd", weights, value)


def test_attention_of_placed_tokens():
    """Two calls are one attention in which some rows see less; canvases differ."""
    batch, others, grid, joined, heads, width = 2, 2, (3, 2), 3, 2, 8
    cells = grid[0] * grid[1]
    length = others + cells + joined
    heads_of = [normal(i, batch, length, heads, width) for i in range(3)]
    sizes = np.asarray([(3, 2), (2, 1)], np.int32)
    rotation = grid_rotation(*grid, width, grid_size=jnp.asarray(sizes))
    waves = 2 * np.pi * 100.0 ** (-4 * np.arange(2) / width)
    angles = np.zeros((batch, *grid, 4))
    for b, (rows, columns) in enumerate(sizes):
        for i, j in np.ndindex(*grid):
            y, x = 2 * (i + 0.5) / rows - 1, 2 * (j + 0.5) / columns - 1
            angles[b, i, j] = np.concatenate([y * waves, x * waves])
    angles = angles.reshape(batch, cells, 4)
    rng = np.random.default_rng(0)
    real = np.ones((batch, length), bool)
    inside = (np.arange(3)[:, None] < 2) & (np.arange(2)[None] < 1)
    real[1, others : others + cells] = inside.reshape(-1)
    seen = np.broadcast_to(real[:, None], (batch, length, length)).copy()
    own = rng.random((batch, joined, cells)) < 0.5
    seen[:, -joined:, others : others + cells] &= own
    context = PlacedTokens(others, cells, jnp.asarray(real), rotation, jnp.asarray(own))
    found = jax.jit(lambda *x: context.attend(*x, 0.0, None))(*heads_of)
    expected = naive(*map(np.asarray, heads_of), angles, others, seen)
    assert_close(found, expected, 2e-5)


COUNTS = {
    # masks.md 7.1, of the published models: data set, backbone, task, labels.
    ("coco_panoptic", "dinov2_s14_reg", "panoptic", 133): 23_975_942,
    ("coco_panoptic", "dinov2_g14_reg", "panoptic", 133): 1_163_622_022,
    ("ade20k", "dinov2_l14_reg", "semantic", 150): 316_020_887,
    ("coco_panoptic", "dinov3_b16", "panoptic", 133): 92_425_094,
    ("ade20k", "dinov3_l16", "semantic", 150): 314_947_735,
}
MASK_TOKEN = 1
BACKBONES = {
    # masks.md 7.3, with a token that only pretraining needs.
    "dinov3_s16": (21_596_544, 384), "dinov3_b16": (85_660_416, 768),
    "dinov3_l16": (303_129_600, 1024), "dinov3_h16plus": (840_592_640, 1280),
}  # fmt: skip


def count(config, num_classes):
    with config.unlocked():
        config.model.backbone.scan = True
    model = FunctionalModel.build(config, num_classes)
    return model.num_parameters, model.learned


@pytest.mark.parametrize("row", COUNTS, ids=str)
def test_parameters_of_eomt(row):
    dataset, backbone, task, num_classes = row
    config = eomt.get_config(f"dataset={dataset},backbone={backbone},task={task}")
    assert count(config, num_classes)[0] == COUNTS[row]


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_of_dinov3(name):
    _, learned = count(encoder_only.get_config(f"backbone={name}"), 5)
    own = sum(x.size for path, x in learned.items() if path.startswith("backbone/"))
    expected, width = BACKBONES[name]
    assert own == expected - width * MASK_TOKEN


def test_multiply_accumulates():
    """ViT-B, 512 pixels, C = 1,284, K = 100, counted by hand; fewer than others'."""
    arg = "dataset=coco_lvis,backbone=vit_b16"
    configs = {
        "encoder_only": encoder_only.get_config(arg),
        "segmenter": segmenter.get_config(arg),
        "eomt": eomt.get_config(arg),
    }
    totals = {}
    for name, config in configs.items():
        with config.unlocked():
            config.model.backbone.scan = True
            config.selection.k = 100
        parts = count_macs(config, FunctionalModel.build(config, 1284))
        totals[name] = sum(part.exact for part in parts.values())
        if name == "encoder_only":
            found = parts
    width, patches = 768, 1024

    def block(tokens):
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    assert found["backbone"].exact == patches * width**2 + 9 * block(1025)
    cosines = (patches + 100) * width**2 + patches * 100 * width
    assert found["decoder"].exact == 3 * block(1125) + cosines
    assert totals["encoder_only"] < 0.91 * totals["eomt"]
    assert totals["encoder_only"] < 0.80 * totals["segmenter"]


def tiny(decoder, **backbone):
    config = make_config("none", selection="complete")
    more = {"positions": "rotary", "key_bias": False, "num_registers": 2, "depth": 3}
    use_tiny_backbone(config, "vit", layer_scale=1.0, **more | backbone)
    use_tiny_decoder(config, decoder, depth=2)
    if decoder == "eomt":
        config.model.decoder.mask_starts = (0.0, 0.5)
        config.model.decoder.mask_ends = (0.5, 1.0)
    return config


@pytest.mark.parametrize("decoder", ["encoder_only", "eomt"])
def test_a_scan_and_rematerialisation_change_nothing(decoder):
    """Values and gradients in training, with some queries masked and some not."""
    results, parameters = [], None
    for options in ({}, {"scan": True, "remat": "dots"}):
        config = tiny(decoder, **options)
        model = FunctionalModel.build(config, NUM_CLASSES)
        if parameters is None:
            parameters = random_parameters(model)
        else:
            parameters = stacked(parameters, model.shapes)

        def loss(parameters, images, model=model):
            class_ids = jnp.asarray([[3, 1, 7, 2], [0, 9, 4, 5]])
            given = Selection(class_ids, None, NUM_CLASSES)
            key = jax.random.key(1)
            output = model.bind(parameters)(
                images, lambda _: given, rng=key, progress=jnp.float32(0.25)
            )
            if decoder == "encoder_only":
                return jnp.sum(jnp.sin(output.logits))
            found = output.regions
            masks = [found.mask_logits(i) for i in range(found.num_predictions)]
            return sum(jnp.sum(jnp.sin(x)) for x in (output.class_logits, *masks))

        results.append(jax.jit(jax.value_and_grad(loss))(parameters, make_images()))
    (value, grads), (other, scanned) = results
    np.testing.assert_allclose(other, value, rtol=1e-4)
    for path, grad in stacked(grads, scanned).items():
        scale = np.max(np.abs(grad)) + 1e-6
        np.testing.assert_allclose(
            scanned[path] / scale, grad / scale, atol=2e-4, err_msg=path
        )


def test_blocks_cease_to_mask_one_after_the_other(monkeypatch):
    """In the end training is as evaluation; between, only the second block masks."""
    config = tiny("eomt")
    config.model.decoder.update(mask_starts=(0.0, 0.5), mask_ends=(0.25, 0.75))
    model = FunctionalModel.build(config, NUM_CLASSES)
    arrays = random_parameters(model), make_images()

    def last(parameters, images, progress=None, is_training=True):
        given = Selection(jnp.asarray([[3, 1], [0, 9]]), None, NUM_CLASSES)
        rng = jax.random.key(1) if is_training else None
        output = model.bind(parameters)(
            images, lambda _: given, rng=rng, progress=progress
        )
        masks = output.regions.mask_logits(output.regions.num_predictions - 1)
        return output.class_logits[:, -1], masks

    train = jax.jit(last)
    begin, between, end = (
        train(*arrays, jnp.float32(share)) for share in (0.0, 0.4, 0.8)
    )
    evaluated = jax.jit(functools.partial(last, is_training=False))(*arrays)
    monkeypatch.setattr(
        EomtDecoder,
        "_unmask",
        lambda self, seen, block, rng, progress: seen | (block == 0),
    )
    second = jax.jit(functools.partial(last, progress=jnp.float32(0)))(*arrays)
    for i in range(2):
        assert_close(end[i], evaluated[i], 2e-4)
        assert_close(between[i], second[i], 2e-4)
        for other in (end, between):
            assert np.max(np.abs(begin[i] - other[i])) > 1e-2
        assert np.max(np.abs(between[i] - end[i])) > 1e-2


def test_what_blocks_make_of_a_class_comes_in_through_a_gate(monkeypatch):
    """Shut, it is a classifier by the rows of the selected classes alone."""
    model = FunctionalModel.build(tiny("encoder_only"), NUM_CLASSES)
    parameters, apart = random_parameters(model), ViT.apart
    given = Selection(jnp.asarray([[3, 1], [0, 9]]), None, NUM_CLASSES)
    width = model.shapes["decoder/class_gate"].shape

    def logits(parameters, images):
        return model.bind(parameters)(images, lambda _: given).logits

    def otherwise(self, tokens, like):
        others, patches = apart(self, tokens, like)
        own, joined = jnp.split(others, [self.num_others], axis=1)
        joined = jnp.flip(joined, axis=-1)
        return jnp.concatenate([own, joined], axis=1), patches

    found = []
    for changed in (apart, otherwise):
        monkeypatch.setattr(ViT, "apart", changed)
        run = jax.jit(functools.partial(logits))
        for gate in (np.zeros(width, np.float32), np.ones(width, np.float32)):
            found.append(run(parameters | {"decoder/class_gate": gate}, make_images()))
    shut, opened, still_shut, other = found
    assert_close(still_shut, shut, 1e-6)
    assert np.max(np.abs(opened - shut)) > 0.01 < np.max(np.abs(other - opened))


def stacked(arrays, paths):
    """Blocks apart to one array, where ``paths`` have it so."""
    found = {}
    for path in paths:
        head, between, tail = path.rpartition("blocks/")
        each = [arrays.get(f"{head}blocks/{i}/{tail}") for i in range(3)]
        found[path] = np.stack(each) if between and path not in arrays else arrays[path]
    return found


def test_nothing_has_all_classes_for_every_patch():
    """In a training step, forward and backward: C is 997, patches are 42."""
    config = tiny("encoder_only")
    with config.unlocked():
        config.model.multilabel_head = encoder_only.get_config(
            "dataset=sign_scenes"
        ).model.multilabel_head
        config.model.multilabel_head.update(embed_dim=8, num_heads=2, downsample=2)
    model = FunctionalModel.build(config, 997)

    def loss(parameters, images, rng):
        output = model.bind(parameters)(images, lambda s: select_top_k(s, 4), rng=rng)
        return jnp.sum(output.logits) + jnp.sum(output.label_scores)

    images = jax.ShapeDtypeStruct((2, 22, 27, 3), jnp.uint8)
    text = str(jax.make_jaxpr(jax.grad(loss))(model.shapes, images, jax.random.key(0)))
    assert "997" in text
    for cells in ("42", "44", "6,7"):
        for shape in (f"{cells},997]", f"997,{cells}]"):
            assert shape not in text, shape


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("backbone.taps", (0, 1), "taps to .. and"),
        ("class_embeddings.in_backbone", True, "needs, too; set that to False"),
        ("decoder.depth", 4, "depth is 4, but the backbone has 3 blocks"),
        ("decoder.mask_ends", (0.5,), "mask_ends has 1 shares for 2 blocks"),
    ],
)
def test_parts_that_do_not_fit(key, value, sentence):
    config = tiny("eomt")
    config.model.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=sentence):
        FunctionalModel.build(config, NUM_CLASSES)
    use_tiny_backbone(config, "swin")
    with pytest.raises(UserError, match="of a ViT; set model.backbone to one"):
        FunctionalModel.build(config, NUM_CLASSES)


@pytest.mark.parametrize("name", ["eomt", "encoder_only"])
def test_another_recipe_with_the_name_of_the_decoder_alone(name):
    config = linear.get_config("dataset=sign_scenes,backbone=dinov2_demo")
    assert held_back(config) == {}
    config.model.decoder.name = name
    with pytest.raises(UserError, match=f"start from configs/{name}.py"):
        held_back(config)
