"""Query2Label: sizes of the paper, batches, padding, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import random_parameters

from configs import query2label, segmenter
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import count_macs
from mlseg_jax.tasks import multilabel


def random_images(*size):
    rng = np.random.default_rng(sum(size))
    return jnp.asarray(rng.integers(0, 256, (*size, 3), np.uint8))


def tiny(num_encoder_layers=0):
    config = query2label.get_config("dataset=ade20k,backbone=vit_demo")
    with config.unlocked():
        sizes = dict(embed_dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4)
        config.model.backbone.update(sizes, image_size=(12, 12), drop_path_rate=0.0)
        config.model.transformer.update(
            num_heads=2, mlp_dim=24, num_encoder_layers=num_encoder_layers
        )
        config.model.dtype = "float32"
        config.data.crop_size = (12, 12)
        config.selection.k = 3
    return config


@pytest.mark.parametrize(
    "num_classes, count", [(171, 252_390_111), (1284, 255_810_360)]
)
def test_swin_l_has_the_papers_number_of_parameters(num_classes, count):
    config = query2label.get_config("backbone=swin_l")
    assert FunctionalModel.build(config, num_classes).num_parameters == count


def test_examples_do_not_see_each_other_and_classes_have_their_own_rows():
    model = FunctionalModel.build(tiny(1), 7)
    parameters = jax.device_put(random_parameters(model))
    images = random_images(3, 20, 16)
    together = model.bind(parameters)(images)
    assert together.shape == (3, 7)
    alone = model.bind(parameters)(images[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)
    # Classes never look at each other: a permutation of their rows permutes scores.
    order = np.asarray([3, 1, 0, 6, 5, 4, 2])
    rows = ("class_embeddings", "classifier/weight", "classifier/bias")
    permuted = parameters | {path: parameters[path][order] for path in rows}
    np.testing.assert_allclose(
        model.bind(permuted)(images), together[:, order], atol=1e-5
    )


def test_the_loss_and_its_gradient():
    config = tiny()
    model = FunctionalModel.build(config, 7)
    parameters = jax.device_put(random_parameters(model))
    rng = np.random.default_rng(1)
    batch = {
        "image": random_images(3, 12, 12),
        "presence": jnp.asarray(rng.random((3, 7)) < 0.4),
    }

    def loss(parameters, rng=None):
        return multilabel.loss(model.bind(parameters), batch, config, rng)

    (total, logs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        parameters
    )
    scores = np.float64(model.bind(parameters)(batch["image"]))
    p = 1 / (1 + np.exp(-scores))
    present = np.asarray(batch["presence"])
    q = np.where(present, p, 1 - p)
    losses = np.where(present, 1.0, p**2) * -np.log(np.maximum(q, 1e-5))
    np.testing.assert_allclose(total, 1000 * losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["loss/multilabel"], losses.mean(), rtol=1e-4)
    top = np.argsort(-scores, axis=1)[:, :3]
    found = [
        len({*t} & {*np.flatnonzero(p)}) for t, p in zip(top, present, strict=True)
    ]
    recall = np.mean(np.asarray(found) / present.sum(axis=1))
    np.testing.assert_allclose(logs["train/image_recall_at_k"], recall, rtol=1e-5)
    # The focusing factor p^2 carries no gradient.
    expected = np.where(present, p - 1, p**3) * (q > 1e-5) * 1000 / present.size
    expected = expected.sum(axis=0)
    np.testing.assert_allclose(gradients["classifier/bias"], expected, rtol=1e-3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    dropped, _ = jax.jit(loss)(parameters, jax.random.key(0))
    assert abs(dropped - total) > 1e-3


@pytest.mark.parametrize(
    "dataset, k, params, macs",
    [("coco_stuff", 50, 343.21, 182.6), ("coco_lvis", 100, 347.33, 233.4)],
)
def test_the_papers_sizes_of_the_two_models_together(dataset, k, params, macs):
    """Table 3 adds a classifier in units of 2^20 and a Segmenter in those of 10^6."""
    classifier = query2label.get_config(f"dataset={dataset},backbone=swin_l")
    given = segmenter.get_config(f"dataset={dataset},backbone=vit_b16,selection=given")
    given.selection.k = k
    count = classifier.data.num_classes
    one, other = (FunctionalModel.build(c, count) for c in (classifier, given))
    found = one.num_parameters / 2**20 + other.num_parameters / 1e6
    assert found == pytest.approx(params, abs=0.006)
    exact = sum(part.exact for part in count_macs(classifier, one).values())
    paper = sum(part.paper for part in count_macs(given, other).values())
    assert exact / 2**30 + paper / 1e9 == pytest.approx(macs, rel=0.005)
