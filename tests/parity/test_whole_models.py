"""Table 8's models with label selection against the modules of mmsegmentation and
transformers, in training: the three losses, which need equal scores, selections and
logits, and all gradients.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from shrink import deeplabv3_config, upernet_config
from test_deeplab import ROWS
from test_frameworks import load
from test_golden import assert_grads, batch_of, close, part

from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import beit, resnet, swin, upernet, vit
from mlseg_jax.pretrained.mapping import CONV, SAME, UNBATCHED, Row, norm, to_ours
from mlseg_jax.tasks import semantic

pytestmark = pytest.mark.usefixtures("quick_compiles")

HEAD, PLAIN = "multilabel_head", ConfigDict({"model": {"backbone": {}}})
HEAD_ROWS = [
    *(
        row
        for name in ("depthwise", "pointwise")
        for row in (
            Row(f"head.{name}.weight", f"{HEAD}/{name}/kernel", CONV),
            Row(f"head.{name}.bias", f"{HEAD}/{name}/bias", SAME),
        )
    ),
    Row("head.cls_emb", "class_embeddings", SAME),
    Row("head.cls_bias_emb", "class_biases", SAME),
    Row("head.own_emb", f"{HEAD}/class_embeddings", SAME),
    *vit.fused_block("head.block", f"{HEAD}/encoder/blocks/blocks/0"),
    *norm("head.norm", f"{HEAD}/encoder/norm"),
    Row("head.ml_fc.W", f"{HEAD}/encoder/classifier/weight", UNBATCHED),
    Row("head.ml_fc.b", f"{HEAD}/encoder/classifier/bias", UNBATCHED),
    *norm("head.mask_norm", "rank_norm"),
]


def deeplab():
    config = deeplabv3_config(
        embed_dim=4,
        depths=(1, 2, 2),
        stem="deep",
        strides=(1, 1, 1),
        dilations=(1, 2, 4),
        contract_dilation=True,
    )
    config.model.decoder.embed_dim = 6
    return config, [*HEAD_ROWS, *ROWS], resnet.names


def swin_upernet():
    config = upernet_config(embed_dim=4, depths=(2, 2), num_heads=(1, 2), window_size=4)
    config.model.decoder.embed_dim = 8
    config.model.multilabel_head.share_embeddings = False
    rows = [*HEAD_ROWS, *swin.mmsegmentation(PLAIN), *upernet.mmsegmentation(PLAIN)]
    return config, rows, lambda arrays: arrays


def beit_upernet():
    sizes = dict(embed_dim=8, depth=4, mlp_dim=16, taps=(0, 1, 2, 3))
    config = upernet_config(backbone="beit_b16", **sizes)
    config.model.decoder.embed_dim = 8
    config.loss.multilabel_weight = 10.0  # half of it in the recipe

    def rename(arrays):
        own = {k for k in arrays if k.startswith("backbone.")}
        backbone = {k.removeprefix("backbone."): arrays[k] for k in own}
        others = {k: x for k, x in arrays.items() if k not in own}
        return vit.hugging_face_names(backbone) | others

    rows = [*HEAD_ROWS, *beit.beit(PLAIN), *upernet.mmsegmentation(PLAIN)]
    return config, rows, rename


CASES = {
    "mlseg_deeplab": deeplab,
    "mlseg_upernet": swin_upernet,
    "mlseg_beit": beit_upernet,
}


@pytest.mark.parametrize("case", CASES)
def test_whole_models(case):
    golden = load(case)
    config, rows, rename = CASES[case]()
    config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
    config.model.auxiliary_head.update(level=-2, embed_dim=4)
    model = FunctionalModel.build(config, 11)

    def ours(kind, shapes):
        shapes = {path: leaf.shape for path, leaf in shapes.items()}
        mapped = to_ours(rename(part(golden, kind)), rows, shapes)
        assert not mapped.dropped
        return {k: jnp.asarray(x.copy()) for k, x in mapped.arrays.items()}

    everything = ours("param", model.shapes)
    params = {path: everything[path] for path in model.learned}

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, batch, rng):
        return semantic.loss(model.bind(everything | params), batch, config, rng)

    # A key means training; nothing is dropped at rates of 0.
    (total, logs), grads = jax.jit(run)(params, batch_of(golden), jax.random.key(0))
    for name in ("pixel", "multilabel", "auxiliary"):
        close(logs[f"loss/{name}"], golden[f"output:loss_{name}"], 5e-5)
    close(total, golden["output:loss"], 5e-5)
    assert_grads(ours("grad", model.learned), grads, 5e-5)
