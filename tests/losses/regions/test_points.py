"""Bilinear sampling at points against one point at a time, and the choice of points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlseg_jax.losses.regions import points

pytestmark = pytest.mark.usefixtures("quick_compiles")
SIZE, SEGMENTS = (5, 11), 4

sample_maps = jax.jit(points.sample_maps)
sample_features = jax.jit(points.sample_features)
sample_segments = jax.jit(points.sample_segments, static_argnums=1)
sample_all_segments = jax.jit(points.sample_all_segments, static_argnums=(1, 2))
select_points = jax.jit(points.select_points, static_argnums=(2, 3))
places_of_least = jax.jit(points.places_of_least, static_argnums=1)


def slow_sample(image, point):
    """grid_sample of one point: every pixel's share of a tent of width two."""
    height, width = image.shape
    x, y = point[0] * width - 0.5, point[1] * height - 0.5
    down = np.maximum(0.0, 1.0 - np.abs(np.arange(height) - y))
    across = np.maximum(0.0, 1.0 - np.abs(np.arange(width) - x))
    return down @ image.astype(np.float64) @ across


def slow_samples(images, where):
    return np.asarray(
        [
            [slow_sample(image, p) for p in w]
            for image, w in zip(images, where, strict=True)
        ]
    )


def some_points(*shape):
    """Corners, borders, centres of pixels and others, also from outside."""
    rng = np.random.default_rng(0)
    where = rng.uniform(-0.1, 1.1, (*shape, 2)).astype(np.float32)
    special = [(0, 0), (1, 1), (0.5, 0), (1.5 / 11, 0.5 / 5), (0.5, 0.5)]
    where[..., : len(special), :] = special
    return where


def test_known_values():
    image = jnp.asarray([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    where = jnp.asarray([[(0, 0), (0.5, 0.5), (1, 1), (1 / 6, 1 / 4), (0.9, 0.1)]])
    values = sample_maps(image, where)
    np.testing.assert_allclose(values[0], [0.25, 3.5, 1.5, 1.0, 1.68], atol=1e-6)


def test_maps_and_features():
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(3, *SIZE)).astype(np.float32)
    where = some_points(3, 9)
    weights = rng.normal(size=(3, 9)).astype(np.float32)

    def total(maps):
        values = sample_maps(maps, jnp.asarray(where))
        return jnp.sum(values * weights), values

    (_, values), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(
        jnp.asarray(maps)
    )
    np.testing.assert_allclose(values, slow_samples(maps, where), atol=1e-5)
    expected = np.zeros(maps.shape)
    for place in np.ndindex(maps.shape):
        one = np.zeros(SIZE)
        one[place[1:]] = 1.0
        expected[place] = (
            slow_samples([one], where[place[0]][None])[0] @ weights[place[0]]
        )
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    features = jnp.asarray(np.moveaxis(maps, 0, -1))
    sampled = sample_features(features, jnp.asarray(where[0]))
    same = slow_samples(maps, [where[0]] * 3)
    np.testing.assert_allclose(sampled, same.T, atol=1e-5)


def test_segments_of_maps_and_of_bits():
    rng = np.random.default_rng(2)
    ids = rng.integers(-1, SEGMENTS, SIZE).astype(np.int32)
    masks = ids[None] == np.arange(SEGMENTS)[:, None, None]
    bits = np.packbits(masks, axis=-1)
    own, where = np.asarray([2, 0, 3, 2]), some_points(4, 9)
    expected = slow_samples(masks[own], where)
    everywhere = slow_samples(masks, [where[0]] * SEGMENTS)
    for form in (ids, bits):
        form = jnp.asarray(form)
        some = sample_segments(form, SIZE, jnp.asarray(own), jnp.asarray(where))
        np.testing.assert_allclose(some, expected, atol=1e-5)
        where_0 = jnp.asarray(where[0])
        found = sample_all_segments(form, SIZE, SEGMENTS, where_0)
        np.testing.assert_allclose(found, everywhere, atol=1e-5)
    # Segments that overlap.
    masks = rng.random((SEGMENTS, *SIZE)) < 0.5
    bits = jnp.asarray(np.packbits(masks, axis=-1))
    some = sample_segments(bits, SIZE, jnp.asarray(own), jnp.asarray(where))
    np.testing.assert_allclose(some, slow_samples(masks[own], where), atol=1e-5)


@pytest.mark.parametrize("uncertain", [7, 0, 10])
def test_selected_points(uncertain):
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(3, *SIZE)).astype(np.float32)
    drawn = rng.random((3, 30 + 10 - uncertain, 2)).astype(np.float32)
    holes = rng.random(SIZE) < 0.3
    for void in (None, holes):
        chosen = select_points(
            jnp.asarray(maps), jnp.asarray(drawn), 10, uncertain,
            None if void is None else jnp.asarray(void),
        )  # fmt: skip
        assert chosen.shape == (3, 10, 2)
        certainty = np.abs(slow_samples(maps, drawn[:, :30]))
        if void is not None:
            covered = slow_samples([void] * 3, drawn[:, :30]) >= 0.5
            certainty = np.where(covered, np.inf, certainty)
        for mine, where, sure in zip(chosen, drawn, certainty, strict=True):
            best = where[np.argsort(sure)[:uncertain]]
            assert {*map(tuple, np.asarray(mine[:uncertain]))} == {*map(tuple, best)}
            np.testing.assert_array_equal(mine[uncertain:], where[30:])


@pytest.mark.parametrize("length, count", [(1, 1), (333, 77), (100, 100), (50, 0)])
def test_places_of_the_least(length, count):
    rng = np.random.default_rng(length)
    tiny = 1e-40 * rng.random((3, length))
    for values in (
        rng.random((3, length)),
        rng.integers(0, 3, (3, length)),
        np.full((3, length), np.inf),
        np.zeros((3, length)),
        np.where(tiny < 5e-41, np.inf, tiny),
    ):
        values = values.astype(np.float32)
        expected = np.argsort(values, axis=1, kind="stable")[:, :count]
        found = places_of_least(values, count)
        np.testing.assert_array_equal(np.sort(found, 1), np.sort(expected, 1))


def test_no_gradient_reaches_the_choice():
    maps = jax.random.normal(jax.random.key(0), (2, *SIZE))
    drawn = jax.random.uniform(jax.random.key(1), (2, 12, 2))

    def total(maps, drawn):
        return jnp.sum(select_points(maps, drawn, 6, 4))

    for grad in jax.jit(jax.grad(total, (0, 1)))(maps, drawn):
        np.testing.assert_array_equal(grad, 0.0)


def test_points_of_every_mask_differ():
    numbers = np.asarray([(p, i, s) for p in (0, 1) for i in (0, 1) for s in (0, 1, 2)])

    @jax.jit
    def draw(numbers):
        return points.uniform_points(jax.random.key(0), *numbers, 5)

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jnp.asarray(numbers)))
    assert len(np.unique(drawn.reshape(-1, 2), axis=0)) == 5 * len(numbers)
    assert drawn.min() >= 0.0 and drawn.max() < 1.0
    np.testing.assert_array_equal(draw(jnp.asarray(numbers[7])), drawn[7])
