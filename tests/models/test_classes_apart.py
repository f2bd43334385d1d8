"""Classes that do not see one another, in the multi-label block and the decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layers import assert_close, normal

from mlseg_jax.models.decoders.dot_product import unit_length
from mlseg_jax.models.decoders.segmenter import SegmenterDecoder
from mlseg_jax.models.interfaces import Embeddings, FeatureMap
from mlseg_jax.models.layers import long_sequences
from mlseg_jax.models.multilabel_heads.transformer_encoder import (
    TransformerEncoderHead,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")
WIDTH = 8


def make(num_classes=6, **options):
    head = TransformerEncoderHead(
        num_classes=num_classes,
        embed_dim=WIDTH,
        num_heads=2,
        rngs=nnx.Rngs(0),
        **{"dropout_rate": 0.0, "downsample": 0, "classes_apart": True} | options,
    )
    # Away from their small first values.
    state = nnx.state(head, nnx.Param)
    nnx.update(head, jax.tree.map(lambda x: 5 * x + 0.1, state))
    return head


def make_decoder(**options):
    decoder = SegmenterDecoder(
        feature_dim=WIDTH,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
        dropout_rate=0.0,
        rngs=nnx.Rngs(0),
        **{"classes_apart": True} | options,
    )
    state = nnx.state(decoder, nnx.Param)
    nnx.update(decoder, jax.tree.map(lambda x: 5 * x + 0.1, state))
    return decoder


@jax.jit
def run(head, grid, classes, grid_size=None, rng=None):
    image = FeatureMap(grid, grid_size)
    return head(Embeddings(image, image), classes, rng)


def plain(head, grid, classes, grid_size=None):
    """One class after the other, each alone with the image, by full attention."""
    image = FeatureMap(grid, grid_size)
    queries = []
    classes = jnp.broadcast_to(classes, (len(grid), *classes.shape[-2:]))
    for c in range(classes.shape[1]):
        mask = jnp.ones(grid.shape[:3], bool) if grid_size is None else image.mask
        batch, length = grid.shape[0], grid.shape[1] * grid.shape[2]
        patches = grid.reshape(batch, length, WIDTH)
        tokens = jnp.concatenate([patches, classes[:, c : c + 1]], axis=1)
        mask = jnp.concatenate([mask.reshape(batch, -1), jnp.ones((batch, 1), bool)], 1)
        queries.append(head.norm(head.blocks(tokens, mask))[:, -1:])
    queries = jnp.concatenate(queries, axis=1)
    return head.classifier(queries), queries


@pytest.mark.parametrize(
    "batch, padded, own, long, remat",
    [
        (1, False, False, 100, "none"),
        (3, True, False, 100, "full"),
        (3, True, True, 100, "none"),
        (3, True, True, 4, "none"),
        (1, False, False, 4, "full"),
    ],
)
def test_each_class_is_alone_with_the_image(
    batch, padded, own, long, remat, monkeypatch
):
    """Also where each picture has classes of its own, and where all goes in parts."""
    monkeypatch.setattr(long_sequences, "LONG_SEQUENCE", long)
    head = make(remat=remat)
    grid, classes = normal(0, batch, 3, 5, WIDTH), normal(1, 6, WIDTH)
    if own:
        classes = normal(4, batch, 6, WIDTH)
    size = jnp.asarray([[3, 5], [2, 4], [1, 1]])[:batch] if padded else None
    weights = normal(2, batch, 6), normal(3, batch, 6, WIDTH)

    def total(function):
        def loss(grid, classes):
            scores, queries = function(head, grid, classes, size)
            value = jnp.sum(scores * weights[0]) + jnp.sum(queries * weights[1])
            return value, (scores, queries)

        step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(step)(grid, classes)

    def ours(*inputs):
        labels = run.__wrapped__(*inputs)
        return labels.scores, labels.class_queries

    assert_close(total(ours), total(plain), 1e-4)


def test_each_class_is_alone_with_the_patches():
    """Segmenter's decoder, block by block, in value and gradient; one class invalid."""
    decoder, batch, count = make_decoder(remat="full"), 3, 3
    grid, classes = normal(0, batch, 2, 3, WIDTH), normal(1, batch, count, WIDTH)
    size = jnp.asarray([[2, 3], [1, 2], [1, 1]])
    valid = jnp.ones((batch, count), bool).at[0, 2].set(False)
    weights = normal(2, batch, 2, 3, count)

    def ours(grid, classes):
        return decoder.classify(FeatureMap(grid, size), classes, valid)

    def plain(grid, classes):
        mask = FeatureMap(grid, size).mask.reshape(batch, -1)
        with_one = jnp.concatenate([mask, jnp.ones((batch, 1), bool)], axis=1)
        patches = grid.reshape(batch, 6, WIDTH)
        for block in decoder.blocks.blocks:
            each = [
                block(jnp.concatenate([patches, one], axis=1), with_one)[:, -1:]
                for one in jnp.split(classes, count, axis=1)
            ]
            patches, classes = block(patches, mask), jnp.concatenate(each, axis=1)
        patches = unit_length(decoder.patch_projection(decoder.norm(patches)))
        classes = unit_length(decoder.class_projection(decoder.norm(classes)))
        cosines = jnp.einsum("bld,bkd->blk", patches, classes)
        return cosines.reshape(batch, 2, 3, count)

    def total(function):
        def loss(grid, classes):
            found = function(grid, classes)
            return jnp.sum(weights * found), found

        step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(step)(grid, classes)

    assert_close(total(ours), total(plain), 1e-4)
    less = make_decoder().classify_macs((3, 5), 4)
    together = make_decoder(classes_apart=False).classify_macs((3, 5), 4)
    # In each block classes do not see the 3 others, nor patches the 4 classes.
    assert together.exact - less.exact == 2 * 2 * WIDTH * (4 * 3 + 4 * 15)


def test_a_new_class_changes_nothing_else():
    grid, classes = normal(0, 2, 3, 3, WIDTH), normal(1, 6, WIDTH)
    head = make()
    before = run(head, grid, classes)
    after = run(head, grid, classes.at[4, 0].add(3.0))
    rest = np.array([0, 1, 2, 3, 5])
    for name in ("scores", "class_queries"):
        old, new = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(old[:, rest], new[:, rest])
        assert np.all(old[:, 4] != new[:, 4])
    np.testing.assert_array_equal(before.elements.grid, after.elements.grid)
    head.classes_apart = False
    together = run(head, grid, classes.at[4, 0].add(3.0))
    assert np.any(run(head, grid, classes).scores[:, rest] != together.scores[:, rest])


def test_many_classes_in_parts_are_the_same(monkeypatch):
    head, grid, classes = make(), normal(0, 1, 3, 3, WIDTH), normal(1, 6, WIDTH)
    whole = run(head, grid, classes)
    monkeypatch.setattr(long_sequences, "LONG_SEQUENCE", 8)
    # A function of its own: what is traced already is not traced again.
    parts = jax.jit(lambda *inputs: run.__wrapped__(*inputs))(head, grid, classes)
    assert_close(parts.scores, whole.scores)
    assert_close(parts.elements.grid, whole.elements.grid)


@pytest.mark.parametrize("apart", [True, False])
def test_training_in_parts_is_the_same(monkeypatch, apart):
    """In value and gradient; 19 classes are not a multiple of a part's two."""
    head = make(19, classes_apart=apart)
    grid, classes = normal(0, 3, 3, 3, WIDTH), normal(1, 19, WIDTH)
    cotangents = normal(2, 3, 19), normal(3, 3, 19, WIDTH), normal(4, 3, 3, 3, WIDTH)
    graph, state = nnx.split(head)

    def total(state, grid, classes):
        image = FeatureMap(grid)
        labels = nnx.merge(graph, state)(
            Embeddings(image, image), classes, jax.random.key(0)
        )
        found = labels.scores, labels.class_queries, labels.elements.grid
        return sum(jnp.sum(x * y) for x, y in zip(found, cotangents, strict=True))

    def run():
        # A function of its own: what is traced already is not traced again.
        step = jax.jit(jax.value_and_grad(lambda *x: total(*x), argnums=(0, 1, 2)))
        return step(state, grid, classes)

    whole = run()
    monkeypatch.setattr(long_sequences, "LONG_SEQUENCE", 8)
    assert_close(run(), whole, 1e-4)


def test_dropout_and_a_narrow_hidden_layer():
    head = make(dropout_rate=0.5, mlp_ratio=1)
    grid, classes = normal(0, 2, 3, 3, WIDTH), normal(1, 6, WIDTH)
    assert head.blocks.blocks[0].mlp_in.kernel.shape == (WIDTH, WIDTH)
    kept = run(head, grid, classes).scores
    dropped = run(head, grid, classes, rng=jax.random.key(0)).scores
    assert np.all(np.isfinite(dropped)) and np.any(kept != dropped)


def test_the_cost_is_linear_in_classes():
    def cost(count, apart):
        head = make(count, classes_apart=apart)
        return head.macs((4, 4), count).exact

    steps = [cost(n + 100, True) - cost(n, True) for n in (100, 1000)]
    assert steps[0] == steps[1]
    assert cost(1000, True) < cost(1000, False)
