"""Every kind of framework in ONNX Runtime, against the model itself."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import shrink
import tiny_regions
from tiny import tiny_config

from mlseg_jax.export import artifacts, parity
from mlseg_jax.export.functions import Functions
from mlseg_jax.models.build import FunctionalModel

LARGE = {
    "data.num_classes": 10_000,
    "model.backbone.embed_dim": 16,
    "model.multilabel_head.num_heads": 2,
}

CONFIGS = {
    "segmenter": lambda: tiny_config({"selection.minimum_score": 0.4}),
    "many_classes": lambda: tiny_config(LARGE),
    "classes_apart": lambda: tiny_config({"model.decoder.classes_apart": True}),
    "baseline": lambda: shrink.segmenter_config("complete"),
    "deeplabv3": shrink.deeplabv3_config,
    "upernet": shrink.upernet_config,
    "beit": lambda: shrink.upernet_config(backbone="beit_b16"),
    "linear": shrink.linear_config,
    "mask2former": lambda: mask2former(),
    "maskformer": lambda: tiny_regions.region_config("maskformer"),
    "encoder_only": lambda: last_blocks("encoder_only"),
    "eomt": lambda: last_blocks("eomt", mask_starts=(0.0, 0.5), mask_ends=(0.5, 1.0)),
}

IN_THE_SUITE = ("mask2former", "encoder_only", "classes_apart")


def mask2former():
    config = tiny_regions.region_config()
    shrink.use_tiny_pixel_decoder(config, "deformable")
    return config


PROJECTED = dict(
    name="projected_encoder",
    downsample=4,
    dropout_rate=0.0,
    share_embeddings=False,
    class_projection=True,
)


def last_blocks(decoder, **more):
    config = shrink.segmenter_config()
    with config.unlocked():
        config.model.multilabel_head = ml_collections.ConfigDict(
            config.model.multilabel_head.to_dict() | PROJECTED
        )
    backbone = dict(positions="rotary", key_bias=False, num_registers=2, depth=3)
    shrink.use_tiny_backbone(config, "vit", layer_scale=1.0, **backbone)
    shrink.use_tiny_decoder(config, decoder, depth=2, **more)
    return config


def functions_of(config, num_classes):
    model = FunctionalModel.build(config, num_classes)
    rng = np.random.default_rng(0)

    def draw(path, shape):
        # Nothing is 0 or 1 throughout, which would hide mistakes.
        x = rng.standard_normal(shape).astype(np.float32)
        if path.endswith(("scale", "var")):
            return 1.0 + 0.2 * np.abs(x)
        return x / np.float32(max(np.prod(shape[:-1]), 4.0) ** 0.5)

    parameters = {
        path: jnp.asarray(draw(path, x.shape)) for path, x in model.shapes.items()
    }
    size = tuple(min(side, 48) for side in config.data.crop_size)
    return Functions.of(config, model, parameters, size)


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_a_framework_says_the_same_in_onnx(name, tmp_path):
    """All of the chain, and that its parts make it up; others than those of the suite
    were run by hand.
    """
    config = CONFIGS[name]()
    num_classes = config.data.num_classes or shrink.NUM_CLASSES
    functions = functions_of(config, num_classes)
    symbol = artifacts.any_batch()
    calls = artifacts.arguments(functions, symbol)
    artifacts.write_onnx_files(tmp_path, functions, calls, artifacts.OPSETS[0], symbol)
    run = parity.open_artifacts(tmp_path, "onnx")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, *functions.size, 3), np.uint8)
    inputs = parity.segment_inputs(functions, images)
    expected = parity.calls_of(functions)("segment", inputs)
    got = run("segment", inputs)
    np.testing.assert_allclose(got["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_array_equal(got["class_ids"], expected["class_ids"])
    np.testing.assert_array_equal(got["valid"], expected["valid"])
    assert np.mean(got["label_map"] != expected["label_map"]) <= 0.002
    # One picture alone, and by the two parts.
    alone = run("segment", parity.segment_inputs(functions, images[:1]))
    assert np.mean(alone["label_map"] != expected["label_map"][:1]) <= 0.002
    encoded = run("encode", parity.encode_inputs(functions, images[:1]))
    np.testing.assert_allclose(encoded["scores"], got["scores"][:1], atol=1e-4)
    chosen = {key: got[key][:1] for key in ("class_ids", "valid")}
    logits = run("classify", encoded | chosen)["logits"]
    columns = functions.num_ranks + (functions.model.num_queries > 0)
    assert logits.shape[0] == 1 and logits.shape[-1] == columns
    assert np.all(np.isfinite(logits))
