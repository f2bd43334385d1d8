"""Frameworks that classify regions: published sizes, selections, memory, faults."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import NUM_CLASSES, random_parameters

from configs import mask2former, maskformer, paper, region_classifier
from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import UNSELECTED_LOGIT, Selection, select_complete
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.models.macs import Macs
from mlseg_jax.models.rank_adaptive import RankNorm

C = NUM_CLASSES
pytestmark = pytest.mark.usefixtures("quick_compiles")

BASELINE = "selection=complete"
M2F, MF = mask2former, maskformer
PANOPTIC = {
    name: f"dataset={name}_panoptic,task=panoptic" for name in ("ade20k", "coco")
}

# masks.md 2.5 and 3.5 and method.md 14.4: parameters, and of its table 2^30
# multiply-accumulates of pictures of 640 pixels. Without the affine parameters of
# frozen batch norms, which there are no parameters.
PUBLISHED = [
    (M2F, f"dataset=ade20k,{BASELINE}", 215_488_779, 368.85),
    (M2F, "dataset=ade20k", 218_927_672, 369.65),
    (M2F, f"{PANOPTIC['ade20k']},{BASELINE}", 215_539_979, 377.71),
    (M2F, PANOPTIC["ade20k"], 218_978_872, 378.88),
    (M2F, f"{PANOPTIC['coco']},backbone=resnet50,{BASELINE}", 43_983_878, None),
    (MF, f"dataset=ade20k,backbone=resnet50,{BASELINE}", 41_254_743, None),
    (MF, f"dataset=ade20k,backbone=swin_l,{BASELINE}", 211_575_627, None),
    (MF, f"{PANOPTIC['coco']},backbone=resnet101,{BASELINE}", 63_951_942, None),
    (MF, f"{PANOPTIC['coco']},backbone=swin_t,{BASELINE}", 41_752_640, None),
    (paper, "ade20k_panoptic_maskformer_baseline", 45_016_407, None),
    (paper, "ade20k_panoptic_maskformer_mlseg", 45_016_407 + 3_438_893, None),
    (paper, "ade20k_panoptic_maskformer_oracle", 45_016_407, None),
]


@pytest.mark.parametrize("recipe, argument, parameters, macs", PUBLISHED)
def test_published_sizes(recipe, argument, parameters, macs):
    config = recipe.get_config(argument)
    with config.unlocked():
        config.model.backbone.scan = True  # the same numbers, traced once
        config.data.crop_size = (640, 640)
    model = FunctionalModel.build(config, config.data.num_classes)
    frozen = sum(
        shape.size
        for path, shape in model.learned.items()
        if any(re.search(pattern, path) for pattern in config.optimizer.frozen)
    )
    assert model.num_parameters - frozen == parameters
    total = sum(count_macs(config, model).values(), Macs())
    assert 0 < total.exact <= total.paper
    if macs:
        assert abs(total.paper / 2**30 / macs - 1.0) < 0.005


# ----------------------------------------------------------------------- tiny models


def tiny_config(recipe=M2F, argument="", **decoder):
    config = recipe.get_config(f"dataset=sign_scenes,backbone=swin_demo,{argument}")
    sizes = dict(embed_dim=16, num_heads=2, mlp_dim=16, depth=2)
    with config.unlocked():
        config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        config.model.backbone.update(
            embed_dim=4, depths=(2, 2, 2), num_heads=(1, 1, 2), window_size=3
        )
        config.model.pixel_decoder.update(sizes | {"num_groups": 4, "depth": 1})
        config.model.decoder.update(sizes | {"num_queries": 5} | decoder)
        if config.model.multilabel_head.name != "none":
            config.model.multilabel_head.update(embed_dim=24, num_heads=2)
    return config


def make_images(batch=2, height=26, width=35):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, height, width, 3)).astype(np.float32)


def released_logits(parameters, queries, ids):
    """Cosines with the selected rows and no-object, then a norm over both (method.md
    11.2, items 3 to 5).
    """
    rows, last = parameters["class_embeddings"][ids], parameters["decoder/no_object"]
    rows = np.concatenate([rows, np.broadcast_to(last, (len(rows), 1, len(last)))], 1)
    rows, queries = (x / np.linalg.norm(x, axis=-1)[..., None] for x in (rows, queries))
    cosines = np.einsum("bpnd,bkd->bpnk", queries, rows)
    plain = cosines - cosines.mean(-1, keepdims=True)
    plain /= np.sqrt(cosines.var(-1, keepdims=True) + 1e-5)
    ranks = [*range(ids.shape[1]), -1]
    scale, shift = (parameters[f"rank_norm/{x}"][ranks] for x in ("scale", "bias"))
    return plain * scale + shift


@pytest.mark.parametrize("recipe, image", [(M2F, "queries"), (MF, "pixels")])
def test_selections(recipe, image):
    """K < C with ranks that only pad; the evaluation's prediction is the training's
    last one; masks do not depend on the selection.
    """
    config = tiny_config(recipe, image=image, dropout_rate=0.0)
    config.model.multilabel_head.dropout_rate = 0.0
    config.model.backbone.drop_path_rate = 0.0
    config.model.pixel_decoder.dropout_rate = 0.0
    model = FunctionalModel.build(config, C)
    parameters = random_parameters(model)
    ids = jnp.asarray([[3, 1, 7], [0, 10, 2]])
    valid = jnp.asarray([[True] * 3 + [False] * 2] * 2)
    padded = jnp.pad(ids, [(0, 0), (0, 2)], constant_values=5)

    @jax.jit
    def run(parameters, images):
        bound = model.bind(parameters)
        labels = bound.encode(images)
        outputs = [
            bound.classify(labels, Selection(ids, None, C)),
            bound.classify(labels, Selection(padded, valid, C)),
            bound.classify(labels, select_complete(labels.scores)),
        ]
        trained = bound(
            images, lambda scores: Selection(ids, None, C), rng=jax.random.key(0)
        )
        # The release's oracle: the last prediction alone is kept to valid labels.
        bound.last_prediction_only = True
        told = bound(
            images,
            lambda scores: Selection(padded, valid, C),
            rng=jax.random.key(0),
        ).class_logits
        masks = [each.regions.mask_logits() for each in (*outputs, trained)]
        logits = [each.class_logits for each in (*outputs, trained)]
        return logits, told, masks, labels.elements.queries

    logits, told, masks, queries = run(parameters, make_images())
    few, with_padding, complete, trained = map(np.asarray, logits)
    np.testing.assert_allclose(
        few, released_logits(parameters, queries, ids), rtol=1e-4, atol=1e-4
    )
    assert few.shape == (2, 1, 5, 4) and complete.shape == (2, 1, 5, C + 1)
    np.testing.assert_array_equal(with_padding[..., 3:5], UNSELECTED_LOGIT)
    np.testing.assert_allclose(
        with_padding[..., [0, 1, 2, 5]], few, rtol=1e-4, atol=1e-5
    )
    supervised = 3 if recipe is M2F else 2
    assert trained.shape == (2, supervised, 5, 4)
    np.testing.assert_allclose(trained[:, -1:], few, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(told[:, -1, :, 3:5], UNSELECTED_LOGIT)
    assert np.min(told[:, :-1]) > UNSELECTED_LOGIT
    np.testing.assert_allclose(told[:, -1:], with_padding, rtol=1e-4, atol=1e-4)
    for mask in masks[1:]:
        np.testing.assert_allclose(mask, masks[0], rtol=1e-4, atol=1e-4)


def test_no_object_keeps_its_parameters():
    """Whatever the number of ranks; and it is never invalid."""
    norm = RankNorm("affine", 4, no_object=True)
    norm.scale[...] = jnp.asarray([1.0, 2.0, 3.0, 4.0, 50.0])
    norm.bias[...] = jnp.zeros(5)
    scores = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
    centred = scores - scores.mean(-1, keepdims=True)
    plain = centred / np.sqrt(scores.var(-1, keepdims=True) + 1e-5)
    found = norm(jnp.asarray(scores))
    np.testing.assert_allclose(found, plain * [1.0, 2.0, 50.0], rtol=1e-4, atol=1e-5)
    of_classes = norm(jnp.asarray(scores), None, jnp.asarray([[3, 0], [1, 1]]))
    scales = np.asarray([[4.0, 1.0, 50.0], [2.0, 2.0, 50.0]])[:, None, None]
    np.testing.assert_allclose(of_classes, plain * scales, rtol=1e-4, atol=1e-5)
    invalid = norm(jnp.asarray(scores), jnp.asarray([[False, False], [True, False]]))
    np.testing.assert_array_equal(invalid[0, ..., :2], UNSELECTED_LOGIT)
    # Alone it is its own mean.
    np.testing.assert_allclose(invalid[0, ..., 2], 0.0, atol=1e-5)
    assert norm.inverse_temperature(3).tolist() == [1.0, 2.0, 3.0]


def test_memory_does_not_grow_with_predictions():
    """In evaluation no mask is made on the finest grid but the last prediction's."""
    config = tiny_config(num_queries=64)
    model = FunctionalModel.build(config, C)

    def run(parameters, images):
        return model.bind(parameters)(images, select_complete)

    shapes = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    text = jax.jit(run).lower(model.shapes, shapes).as_text()
    assert "1x64x16x24xf32" not in text


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"pixel_decoder.name": "none"}, "stands on a pixel decoder; set"),
        ({"pixel_decoder.name": "fpn9"}, "pixel_decoder.name 'fpn9'; choose one of"),
        ({"pixel_decoder.num_groups": 3}, "num_groups is 3, which does not divide"),
        ({"decoder.image": "words"}, "Unknown model.decoder.image 'words'; choose"),
        ({"decoder.image_layer": 3}, "image_layer is 3, but there are 2 layers"),
        ({"multilabel_head.share_embeddings": True}, "embed_dim is 24, but it shares"),
        ({"multilabel_head.projection": "none"}, "projection 'none'; choose one of"),
        ({"class_embeddings.initial": "ones"}, "initial is 'ones'; give normal"),
    ],
)
def test_parts_that_do_not_fit(changes, sentence):
    config = tiny_config()
    config.model.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence):
        FunctionalModel.build(config, C)


@pytest.mark.parametrize(
    "recipe, backbone", [(M2F, "vit_demo"), (MF, "dinov2_demo"), (M2F, "beit_demo")]
)
def test_backbones_of_one_map_get_a_pyramid(recipe, backbone):
    config = recipe.get_config(f"dataset=sign_scenes,backbone={backbone},task=panoptic")
    config.model.decoder.update(depth=1, image_layer=0)
    config.model.pixel_decoder.depth = 1
    model = FunctionalModel.build(config, 40)
    patch = config.model.backbone.patch_size
    assert model.grid_length(4 * patch) == 16
    images = jax.ShapeDtypeStruct((1, 4 * patch, 4 * patch, 3), jnp.uint8)
    run = lambda params, images: model.bind(params)(images, select_complete)  # noqa: E731
    output = jax.eval_shape(run, model.shapes, images)
    assert output.regions.features.grid.shape == (1, 16, 16, 64)


@pytest.mark.parametrize("recipe", [M2F, MF])
def test_configurations(recipe):
    """Every data set, task and selection; names that are not there."""
    for dataset in region_classifier.NUM_CLASSES:
        for task in region_classifier.SEGMENTS:
            for selection in ("complete", "top_k", "oracle", "given"):
                config = recipe.get_config(
                    f"dataset={dataset},task={task},selection={selection}"
                )
                assert config.is_locked and config.task == task
                has_head = config.model.multilabel_head.name != "none"
                assert has_head == (selection == "top_k")
                assert config.model.decoder.cosine == (selection in ("top_k", "given"))
    for argument in ("dataset=ade21k", "backbone=swin_x", "task=video"):
        with pytest.raises(ValueError, match="There is no"):
            recipe.get_config(argument)
