"""DINOv3 and EoMT against the transformers library's modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from test_frameworks import Functional, check_backbone, check_canvas, plain_config
from test_frameworks import load as load_framework
from test_golden import assert_grads, close, nhwc, part
from test_golden_regions import file_points

from configs import eomt
from mlseg_jax.label_selection import select_complete
from mlseg_jax.losses.regions.loss import reduce_region_losses, region_losses
from mlseg_jax.losses.regions.mask import RegionLoss
from mlseg_jax.losses.regions.targets import Targets
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import dinov3
from mlseg_jax.pretrained import eomt as tables
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.load import load_arrays
from mlseg_jax.pretrained.mapping import to_ours
from mlseg_jax.pretrained.read import WeightFile

CLASSES, QUERIES, DEPTH, JOINT = 7, 5, 4, 2
SETTINGS = RegionLoss("points", 2.0, 5.0, 5.0, 0.1, 40, 3.0, 0.75)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize(
    "case, canvas", [("dinov3", (36, 33)), ("dinov3_gated", (24, 40))]
)
def test_dinov3(case, canvas):
    """After every block, on two grids, and in a corner of a canvas; gradients."""
    golden = load_framework(case)
    sizes = plain_config(golden) | dict(
        layer_scale=1.0, positions="rotary", key_bias=False, norm_epsilon=1e-5
    )
    model = Functional(lambda: ViT(**sizes, rngs=nnx.Rngs(0)))
    config = ConfigDict({"model": {"backbone": {"gated": sizes["gated"]}}})
    table = dinov3.hugging_face(config), dinov3.hugging_face_names
    params, images, grids = check_backbone(golden, model, table)
    check_canvas(model, params, images, grids, canvas)


def make_config(case, golden) -> ConfigDict:
    backbone = "dinov3_s16" if case == "eomt_dinov3" else "dinov2_s14_reg"
    config = eomt.get_config(f"dataset=ade20k,backbone={backbone}")
    with config.unlocked():
        config.data.update(num_classes=0, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        config.model.backbone.update(
            embed_dim=16,
            depth=DEPTH,
            num_heads=2,
            mlp_dim=32,
            num_registers=2,
            patch_size=int(golden["config:patch_size"]),
            image_size=(int(golden["config:side"]),) * 2,
            position_rescale=1.0,
        )
        config.model.decoder.update(
            depth=JOINT, num_queries=QUERIES, mask_starts=(0.4, 0.6),
            mask_ends=(0.6, 0.8),
        )  # fmt: skip
    return config


@pytest.mark.parametrize("case", ["eomt", "eomt_dinov3"])
def test_eomt(case):
    """Files of the library as they come: all predictions, its loss, its gradients."""
    golden = load_framework(case)
    config = make_config(case, golden)
    model = FunctionalModel.build(config, CLASSES)
    file = WeightFile("x", "", part(golden, "param"))
    key, source, arrays = recognise(file)
    loaded = load_arrays(config, CLASSES, source, arrays)
    assert key == "hugging_face_eomt" and not loaded.fresh and not loaded.dropped
    params = {path: jnp.asarray(x.copy()) for path, x in loaded.arrays.items()}
    ids, ranks = golden["input:ids"], golden["input:ranks"]
    targets = Targets(
        jnp.asarray(ranks), jnp.asarray(ranks >= 0), jnp.asarray(ids), None,
        ids.shape[1:],
    )  # fmt: skip
    drawn = (jnp.asarray(golden[f"input:{x}"]) for x in ("cost_points", "points"))
    draw = jax.tree_util.Partial(file_points, *drawn)
    images = jnp.asarray(nhwc(golden["input:image"]))

    @jax.jit
    def run(params):
        def loss(params):
            bound = model.bind(params)
            # A key means all predictions and masks; at the start none is drawn away.
            output = bound(
                images, select_complete, rng=jax.random.key(0), progress=jnp.float32(0)
            )
            found = output.regions
            masks = [found.mask_logits(i) for i in range(found.num_predictions)]
            embeddings, grids = found.mask_embeddings, found.grids
            losses = region_losses(
                SETTINGS, output.class_logits, embeddings, grids, targets, draw
            )
            total, _ = reduce_region_losses(SETTINGS, losses)
            return total, (output.class_logits, jnp.stack(masks, axis=1))

        plain = model.bind(params)(images, select_complete)
        plain = plain.class_logits[:, 0], plain.regions.mask_logits()
        return jax.value_and_grad(loss, has_aux=True)(params), plain

    ((value, (classes, masks)), grads), (open_classes, open_masks) = run(params)
    close(classes, golden["output:classes"], 5e-5)
    close(masks, golden["output:masks"], 5e-5)
    close(open_classes, golden["output:open_classes"], 5e-5)
    close(open_masks, golden["output:open_masks"], 5e-5)
    close(value, golden["output:loss"], 2e-5)
    arrays = tables.hugging_face_names(part(golden, "grad"))
    shapes = {path: leaf.shape for path, leaf in model.shapes.items()}
    expected = to_ours(arrays, source.rows(config), shapes).arrays
    assert_grads(expected, grads, 1e-4)
    # And back.
    theirs = tables.to_hugging_face(config, loaded.arrays)
    assert theirs.keys() - file.arrays.keys() == {
        "criterion.empty_weight", "attn_mask_probs"
    }  # fmt: skip
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
