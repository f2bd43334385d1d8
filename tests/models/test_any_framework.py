"""Any backbone with any decoder, head and selection: builds, traces, permutes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import (
    NUM_CLASSES,
    TINY_BACKBONES,
    TINY_DECODERS,
    TINY_PIXEL_DECODERS,
    linear_config,
    random_parameters,
    segmenter_config,
    upernet_config,
    use_tiny_backbone,
    use_tiny_decoder,
    use_tiny_pixel_decoder,
)
from test_mlseg import make_config, make_images

from mlseg_jax.errors import UserError
from mlseg_jax.label_selection import (
    SELECTIONS,
    Selection,
    SelectionPolicy,
    select_complete,
    select_top_k,
)
from mlseg_jax.models.build import (
    BACKBONES,
    DECODERS,
    MULTILABEL_HEADS,
    PIXEL_DECODERS,
    FunctionalModel,
)
from mlseg_jax.models.encoder_only import ENCODER_ONLY
from mlseg_jax.models.interfaces import RegionOutput
from mlseg_jax.models.rank_adaptive import RANK_NORMS

C = NUM_CLASSES
pytestmark = pytest.mark.usefixtures("quick_compiles")


def logits_of(output):
    """Of pixels ``[B h w K]``, or of regions ``[B P N K+1]``."""
    return output.class_logits if isinstance(output, RegionOutput) else output.logits


FEW = 4


def few_of(baseline, class_ids, parameters):
    """Logits of some classes and no-object, from those of all.

    With a rank norm they are the normalised scores of all classes, normalised again.
    """
    rows = np.concatenate([class_ids, np.full((len(class_ids), 1), C)], axis=1)
    scale, bias = (
        np.asarray(parameters.get(f"rank_norm/{name}", default))
        for name, default in (("scale", np.ones(C + 1)), ("bias", np.zeros(C + 1)))
    )
    some = np.stack(
        [
            ((logits - bias) / scale)[..., row]
            for logits, row in zip(baseline, rows, strict=True)
        ]
    )
    if "rank_norm/scale" not in parameters:
        return some
    centred = some - some.mean(axis=-1, keepdims=True)
    normalised = centred / np.sqrt(some.var(axis=-1, keepdims=True) + 1e-5)
    return normalised * scale[rows][:, None, None] + bias[rows][:, None, None]


def check_permutation(config):
    """With K = C, ranks are only another order of the classes, each with its scale."""
    model = FunctionalModel.build(config, C)
    parameters = random_parameters(model)
    permuted = np.stack([np.random.default_rng(b).permutation(C) for b in range(2)])
    few = Selection(jnp.asarray(permuted[:, :FEW]), None, C)
    # Of pixels, what is selected may change the features (Segmenter's do).
    of_regions = model.num_queries > 0

    @jax.jit
    def run(parameters, images):
        bound = model.bind(parameters)
        labels = bound.encode(images)
        chosen = Selection(jnp.asarray(permuted), None, C)
        return (
            logits_of(bound.classify(labels, select_complete(labels.scores))),
            logits_of(bound.classify(labels, chosen)),
            logits_of(bound.classify(labels, few)) if of_regions else None,
        )

    baseline, logits, fewer = run(parameters, make_images())
    baseline, logits = map(np.asarray, (baseline, logits))
    for b in range(2):
        # No-object, where there is one, stays last.
        order = [*permuted[b], *range(C, baseline.shape[-1])]
        np.testing.assert_allclose(
            logits[b], baseline[b][..., order], rtol=1e-4, atol=2e-5
        )
    if of_regions:
        expected = few_of(baseline, permuted[:, :FEW], parameters)
        np.testing.assert_allclose(fewer, expected, rtol=2e-3, atol=2e-3)
    # Not because all rows were alike.
    assert np.std(baseline, axis=-1).min() > 1e-3


REGIONS = [
    ("eomt", "projected_encoder"),
    ("mask2former", "projected_encoder"),
    ("mask2former", "segmentation_logits"),
    ("maskformer", "transformer_encoder"),
]
PIXELS = [
    (decoder, head)
    for decoder in DECODERS.keys() - dict(REGIONS).keys()
    for head in MULTILABEL_HEADS
    if decoder != "encoder_only"
    or head in ("projected_encoder", "global_pooling", "none")
]


@pytest.mark.parametrize("decoder, head", [*sorted(PIXELS), *REGIONS])
def test_a_permuted_complete_selection_is_the_baseline(decoder, head):
    config = make_config(head, selection="complete")
    use_tiny_decoder(config, decoder)
    check_permutation(config)


@pytest.mark.parametrize("pixel_decoder", TINY_PIXEL_DECODERS)
@pytest.mark.parametrize("decoder", ["mask2former", "maskformer"])
def test_permuted_classes_of_regions(decoder, pixel_decoder):
    """As the published baselines: a dot product and a bias for each class; on a
    backbone with several maps.
    """
    config = make_config("none", rank_norm="none", selection="complete")
    use_tiny_backbone(config, "swin")
    use_tiny_decoder(config, decoder, cosine=False)
    use_tiny_pixel_decoder(config, pixel_decoder)
    check_permutation(config)


@pytest.mark.parametrize("head", ["none", "transformer_encoder", "projected_encoder"])
def test_permuted_classes_out_of_the_backbone(head):
    """Class embeddings that have passed it differ from picture to picture (OCE)."""
    config = make_config(head, rank_norm="none", selection="complete", depth=2)
    config.model.class_embeddings.in_backbone = True
    check_permutation(config)


# Any part with any decoder; any selection with the parts of the paper.
COMBINATIONS = dict.fromkeys(
    (
        *((name, decoder, "none", "complete")
          for name in BACKBONES for decoder in DECODERS
          if name == "vit" or decoder not in ENCODER_ONLY),
        *(("vit", decoder, head, "top_k")
          for decoder in sorted(DECODERS.keys() - {*ENCODER_ONLY})
          for head in MULTILABEL_HEADS),
        *(("vit", decoder, "projected_encoder", "top_k") for decoder in ENCODER_ONLY),
        *(("vit", "segmenter", "transformer_encoder", name) for name in SELECTIONS),
    )
)  # fmt: skip


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_combination_traces(combination):
    backbone, decoder, head, selection = combination
    papers = combination == ("vit", "segmenter", "transformer_encoder", "top_k")
    for rank_norm in RANK_NORMS if papers else ("affine",):
        config = make_config(head, rank_norm, selection=selection)
        use_tiny_backbone(config, backbone, drop_path_rate=0.1)
        use_tiny_decoder(config, decoder, dropout_rate=0.1)
        model = FunctionalModel.build(config, C)
        policy = SelectionPolicy(selection, 4)

        def run(parameters, images, histogram, rng, model=model, policy=policy):
            given = select_top_k(jnp.zeros((2, C)), 3)
            select = policy.select(histogram=histogram, given=given)
            return model.bind(parameters)(images, select, rng=rng)

        output = jax.eval_shape(
            run,
            model.shapes,
            jax.ShapeDtypeStruct((2, 22, 27, 3), jnp.uint8),
            jax.ShapeDtypeStruct((2, C), jnp.int32),
            jax.random.key(0),
        )
        num_ranks = {"complete": C, "given": 3}.get(selection, 4)
        rows, columns = map(model.grid_length, (22, 27))
        if isinstance(output, RegionOutput):
            masks = jax.eval_shape(lambda x: x.mask_logits(), output.regions)
            assert masks.shape == (2, 5, rows, columns)
            predictions = {"eomt": 2, "mask2former": 3, "maskformer": 2}[decoder]
            shape = (2, predictions, 5, num_ranks + 1)
        else:
            shape = (2, rows, columns, num_ranks)
        assert logits_of(output).shape == shape
        assert logits_of(output).dtype == jnp.float32
        assert output.label_scores.shape == (2, C)


def test_every_part_is_tested():
    assert TINY_BACKBONES.keys() == BACKBONES.keys()
    assert TINY_DECODERS.keys() == DECODERS.keys()
    assert TINY_PIXEL_DECODERS.keys() == PIXEL_DECODERS.keys() - {"none"}


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_a_scan_and_rematerialisation_change_nothing(backbone):
    """The same weights, stacked; values and gradients in training mode."""
    results = []
    for options in ({}, {"scan": True, "remat": "dots"}):
        config = make_config("none", selection="complete")
        use_tiny_backbone(config, backbone, **DEEPER.get(backbone, {}), **options)
        model = FunctionalModel.build(config, C)
        parameters = (
            random_parameters(model)
            if not results
            else _stack(parameters, model.shapes)
        )

        def run(parameters, images, model=model):
            features = model.bind(parameters).backbone(images, None, None)
            return sum(jnp.sum(jnp.sin(f.grid)) for f in features), features

        (_, features), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(
            parameters, make_images()
        )
        results.append((features, grads))
    (features, grads), (scanned, scanned_grads) = results
    for feature, other in zip(features, scanned, strict=True):
        np.testing.assert_allclose(other.grid, feature.grid, rtol=1e-4, atol=1e-4)
    for path, grad in _stack(grads, scanned_grads).items():
        scale = np.max(np.abs(grad)) + 1e-6
        np.testing.assert_allclose(
            scanned_grads[path] / scale, grad / scale, atol=1e-4, err_msg=path
        )


DEEPER = {"vit": {"depth": 3}, "swin": {"depths": (4,), "num_heads": (2,)}}


def _stack(parameters, shapes):
    """Those of a model that scans, out of one that does not."""
    stacked = {}
    for path in shapes:
        start, between, end = path.rpartition("/blocks/")
        layers = [
            parameters[name]
            for i in range(9)
            if (name := f"{start}/blocks/{i}/{end}") in parameters
        ]
        stacked[path] = np.stack(layers) if between and layers else parameters[path]
    return stacked


def test_unknown_names():
    for part in ("backbone", "decoder", "multilabel_head"):
        config = make_config()
        with config.unlocked():
            config.model[part].name = "swin9"
        with pytest.raises(UserError, match="'swin9'; choose one of"):
            FunctionalModel.build(config, C)


beit_config = functools.partial(upernet_config, backbone="beit_b16")


@pytest.mark.parametrize(
    "make, key, value, sentence",
    [
        (segmenter_config, "decoder.name", "upernet",
         "decoder.name='upernet' needs the key 'embed_dim', .* start from a file of"),
        (segmenter_config, "auxiliary_head.name", "fcn",
         "auxiliary_head.name='fcn' needs the key 'level'"),
        (segmenter_config, "backbone.name", "resnet", "name='resnet' needs the key"),
        (linear_config, "multilabel_head.name", "transformer_decoder",
         "multilabel_head.name='transformer_decoder' needs the key 'mlp_dim'"),
        (upernet_config, "multilabel_head.name", "transformer_decoder",
         "multilabel_head.downsample is 0; give a whole number from 1"),
        (upernet_config, "multilabel_head.name", "global_pooling",
         "multilabel_head.downsample is 0; give a whole number from 1"),
        (upernet_config, "auxiliary_head.level", 2, "level is 2, .* 'swin' has 2 maps"),
        (upernet_config, "backbone.depths", (2, 3), "come in pairs, .* even numbers"),
        (upernet_config, "backbone.depths", (2, 2, 2), "for each stage, .* have 3, 2"),
        (beit_config, "backbone.taps", (0, 1), "give 4 blocks from 0 to 1"),
        (segmenter_config, "backbone.taps", (5,), "taps is .5,.; give blocks from 0"),
        (segmenter_config, "backbone.num_heads", 3, "3 attention heads do not divide"),
        (segmenter_config, "decoder.depth", 0, "decoder.depth is 0; give a whole num"),
        (upernet_config, "backbone.window_size", -1, "window_size is -1; give a whole"),
        (upernet_config, "backbone.depths", (2, 0), r"is \(2, 0\); give a tuple"),
        (beit_config, "multilabel_head.downsample", -2, "is -2; give a .* from 0"),
        (linear_config, "decoder.dropout_rate", 1.0, "is 1.0; give a probability"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(make, key, value, sentence):
    config = make()
    config.model.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=sentence):
        FunctionalModel.build(config, C)
