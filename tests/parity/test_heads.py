"""The paper's other heads, OCE, EncNet, ESSNet and Query2Label against plain PyTorch
versions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import assert_grads, batch_of, close, load, make_config, nhwc, part

from configs import query2label
from mlseg_jax.label_selection import SelectionPolicy
from mlseg_jax.metrics.label_recall import label_histogram
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.layers.resize import bilinear_matrix, resample
from mlseg_jax.pretrained import segmenter, vit
from mlseg_jax.pretrained.mapping import norm, to_ours
from mlseg_jax.pretrained.query2label import query2label as query2label_table
from mlseg_jax.tasks import multilabel, semantic

pytestmark = pytest.mark.usefixtures("quick_compiles")

# What a case has besides the default: parts of the model, and losses.
CASES = {
    "head_decoder": {"multilabel_head": "transformer_decoder", "gamma_negative": 0.0},
    "head_pooling": {"multilabel_head": "global_pooling", "gamma_negative": 0.0},
    "head_logits": {"multilabel_head": "segmentation_logits"},
    "oce": {},
    "encnet": {"decoder": "encnet", "multilabel_head": "linear",
               "multilabel": "binary_cross_entropy", "multilabel_weight": 0.2},
    "essnet": {"decoder": "essnet", "multilabel_head": "none", "num_nearest": 3,
               "pixel": "nearest_classes", "multilabel_weight": 0.0},
}  # fmt: skip


def set_up(case):
    golden, choice = load(case), dict(CASES[case])
    selection = "complete" if "decoder" in choice else "top_k"
    config = make_config(golden, selection, 4)
    with config.unlocked():
        model = config.model
        model.class_embeddings.in_backbone = case == "oce"
        model.decoder.update(
            name=choice.pop("decoder", "segmenter"), num_codes=5, cosine_dim=6
        )
        model.multilabel_head.update(
            name=choice.pop("multilabel_head", "transformer_encoder"),
            num_heads=4,
            mlp_dim=24,
        )
        config.loss.update({"multilabel_weight": 10.0} | choice)
    return golden, config, FunctionalModel.build(config, 11)


def table(config):
    """Names of the release, which has no head on the segmentation logits."""
    if config.task == "multilabel":
        return [*vit.mmcv(config), *query2label_table(config)]
    if config.model.multilabel_head.name != "segmentation_logits":
        return segmenter.release(config)
    alone = config.copy_and_resolve_references().unlock()
    alone.model.multilabel_head.name = "none"
    rows = norm("decode_head.class_norm", "multilabel_head/class_norm")
    return segmenter.release(alone) + rows


def converted(golden, config, kind, shapes):
    shapes = {path: leaf.shape for path, leaf in shapes.items()}
    rows = [
        row for row in table(config) if kind == "param" or ".running_" not in row.theirs
    ]
    mapped = to_ours(part(golden, kind), rows, shapes)
    assert not mapped.dropped
    return {path: jnp.asarray(x.copy()) for path, x in mapped.arrays.items()}


@pytest.mark.parametrize("case", CASES)
def test_head(case):
    golden, config, model = set_up(case)
    everything = converted(golden, config, "param", model.shapes)
    params = {path: everything[path] for path in model.learned}
    stats = {k: v for k, v in everything.items() if k not in params}
    batch = batch_of(golden)
    select = SelectionPolicy(config.selection.name, 4).select()

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, batch, rng):
        total, logs = semantic.loss(model.bind(params | stats), batch, config, rng)
        output = model.bind(params | stats)(batch["image"], select, rng=rng)
        return total, (logs, output)

    # A key means training; nothing is dropped at rates of 0.
    (total, (logs, output)), grads = jax.jit(loss)(params, batch, jax.random.key(0))
    close(output.logits, nhwc(golden["output:logits"]))
    close(logs["loss/pixel"], golden["output:loss_pixel"])
    close(total, golden["output:loss"])
    if "output:scores" in golden:
        close(output.label_scores, golden["output:scores"])
        close(logs["loss/multilabel"], golden["output:loss_multi_label"])
    if "output:indices" in golden:
        ids = output.selection.class_ids
        np.testing.assert_array_equal(ids, golden["output:indices"])
    assert_grads(converted(golden, config, "grad", model.learned), grads)
    if "output:eval_logits" in golden:
        evaluate = jax.jit(lambda params, x: model.bind(params)(x, select))
        output = evaluate(everything, batch["image"])
        close(output.logits, nhwc(golden["output:eval_logits"]))
        if "output:eval_scores" in golden:
            close(output.label_scores, golden["output:eval_scores"])
    if "output:eval_labels" in golden:
        expected = golden["output:eval_labels"]
        rows, columns = (
            bilinear_matrix(length, cells)
            for length, cells in zip(
                expected.shape[1:], output.logits.shape[1:3], strict=True
            )
        )
        labels = np.argmax(resample(rows, columns, output.logits), axis=-1)
        np.testing.assert_array_equal(labels, expected)
        # Between cells that keep different classes this is not what all would give.
        everything = resample(rows, columns, jnp.asarray(nhwc(golden["output:logits"])))
        assert np.mean(np.argmax(everything, axis=-1) != expected) > 0.01


def test_query2label():
    golden = load("query2label")
    config = query2label.get_config("dataset=ade20k,backbone=vit_demo")
    sizes = dict(embed_dim=16, depth=2, num_heads=2, mlp_dim=64, patch_size=4)
    with config.unlocked():
        config.model.backbone.update(sizes, image_size=(24, 24), drop_path_rate=0.0)
        config.model.transformer.update(
            num_heads=4, mlp_dim=24, num_encoder_layers=1, dropout_rate=0.0
        )
        config.model.dtype = "float32"
        # The golden images are normalised already.
        config.data.update(pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))
    model = FunctionalModel.build(config, 11)
    params = converted(golden, config, "param", model.learned)
    images, label_map = batch_of(golden).values()
    presence = label_histogram(jnp.asarray(label_map), 11) > 0
    batch = {"image": images, "presence": presence}

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, batch):
        bound = model.bind(params)
        total, _ = multilabel.loss(bound, batch, config, jax.random.key(0))
        return total, bound(batch["image"])

    (total, scores), grads = jax.jit(loss)(params, batch)
    close(scores, golden["output:scores"])
    close(total, golden["output:loss"])
    assert_grads(converted(golden, config, "grad", model.learned), grads)
