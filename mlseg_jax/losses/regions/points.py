"""Masks looked at in points: bilinear sampling, and which points are worth a look.

Points are (x, y) in [0, 1]² of a map whatever its size, so that logits at stride 4 and
targets at full resolution are sampled at the same places. Sampling is PyTorch's
``grid_sample`` with ``align_corners=False`` and zeros outside (masks.md 1.3): each of
the four corners that lies outside of the map contributes 0.

Functions here are of one image; what they sample has no batch axis.
"""

import functools

import jax
import jax.numpy as jnp

from mlseg_jax.typing import Array, Bool, Float, Int, PRNGKeyArray, UInt8

Masks = Int[Array, "H W"] | UInt8[Array, "M H W8"]
"""Masks of one image's segments: a map of segment numbers where they are disjoint, a
stack of bits where they may overlap; see `targets.Targets`."""


def uniform_points(
    key: PRNGKeyArray,
    prediction: Int[Array, ""],
    image: Int[Array, ""],
    stream: Int[Array, ""],
    count: int,
) -> Float[Array, "count 2"]:
    """Points of one image, of one prediction; other streams are other points.

    They depend on these numbers alone, and so not on which device draws them.
    """
    for number in (prediction, image, stream):
        key = jax.random.fold_in(key, number)
    return jax.random.uniform(key, (count, 2))


def bilinear_corners(
    points: Float[Array, "*shape 2"], size: tuple[int, int]
) -> tuple[Int[Array, "4 *shape"], Int[Array, "4 *shape"], Float[Array, "4 *shape"]]:
    """Rows, columns and weights of the four pixels around each point.

    Those outside of the map have weight 0 and some place inside.
    """
    height, width = size
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right, below = x - left, y - top
    columns = jnp.stack([left, left + 1, left, left + 1])
    rows = jnp.stack([top, top, top + 1, top + 1])
    across = jnp.stack([1 - right, right, 1 - right, right])
    down = jnp.stack([1 - below, 1 - below, below, below])
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return (
        jnp.clip(rows.astype(jnp.int32), 0, height - 1),
        jnp.clip(columns.astype(jnp.int32), 0, width - 1),
        jnp.where(inside, across * down, 0.0),
    )


# -------------------------------------------------------------------- values at points


def sample_maps(
    maps: Float[Array, "G h w"], points: Float[Array, "G P 2"]
) -> Float[Array, "G P"]:
    """Values of each map at its own points."""
    count, height, width = maps.shape
    # With the zeros outside, each corner's three neighbours lie beside it: one gather
    # of four numbers is several times as fast on CPU as four, backwards too.
    edged = jnp.pad(maps, ((0, 0), (1, 1), (1, 1)))
    above, below = edged[:, :-1], edged[:, 1:]
    corners = (above[..., :-1], above[..., 1:], below[..., :-1], below[..., 1:])
    corners = jnp.stack(corners, axis=-1).reshape(-1, 4)
    x, y = points[..., 0] * width + 0.5, points[..., 1] * height + 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right, down = x - left, y - top
    row = jnp.arange(count)[:, None] * (height + 1) + top.astype(jnp.int32)
    place = row * (width + 1) + left.astype(jnp.int32)
    values = corners.at[place].get(mode="promise_in_bounds")
    upper = values[..., 0] * (1.0 - right) + values[..., 1] * right
    lower = values[..., 2] * (1.0 - right) + values[..., 3] * right
    return upper * (1.0 - down) + lower * down


def sample_features(
    features: Float[Array, "h w D"], points: Float[Array, "P 2"]
) -> Float[Array, "P D"]:
    """Features at points. A product with them samples all logits at once."""
    height, width, dim = features.shape
    rows, columns, weights = bilinear_corners(points, (height, width))
    flat = features.reshape(-1, dim)

    # A corner after the other: the gathered rows need not be kept, and XLA does not
    # gather them anew for each of those who read the sum.
    def add(total, corner):
        place, weight = corner
        values = flat.at[place].get(mode="promise_in_bounds").astype(jnp.float32)
        return total + values * weight[..., None], None

    zeros = jnp.zeros((*points.shape[:-1], dim), jnp.float32)
    return jax.lax.scan(add, zeros, (rows * width + columns, weights))[0]


def sample_segments(
    masks: Masks,
    size: tuple[int, int],
    segments: Int[Array, "G"],
    points: Float[Array, "G P 2"],
) -> Float[Array, "G P"]:
    """How much of a segment is at points: soft near its border (masks.md 2.6)."""
    rows, columns, weights = bilinear_corners(points, size)
    if masks.ndim == 2:
        inside = masks[rows, columns] == segments[None, :, None]
    else:
        inside = _bit(masks[segments[None, :, None], rows, columns // 8], columns)
    return jnp.sum(jnp.where(inside, weights, 0.0), axis=0)


def sample_all_segments(
    masks: Masks,
    size: tuple[int, int],
    num_segments: int,
    points: Float[Array, "P 2"],
) -> Float[Array, "M P"]:
    """`sample_segments` of all segments at the same points."""
    rows, columns, weights = bilinear_corners(points, size)
    if masks.ndim == 2:
        segments = jnp.arange(num_segments)[:, None, None]
        inside = masks[rows, columns][None] == segments
    else:
        inside = _bit(masks[:, rows, columns // 8], columns)
    return jnp.sum(jnp.where(inside, weights[None], 0.0), axis=1)


def sample_void(
    void: Bool[Array, "H W"], points: Float[Array, "*shape 2"]
) -> Bool[Array, "*shape"]:
    """Whether half of a point or more is void."""
    rows, columns, weights = bilinear_corners(points, void.shape)
    return jnp.sum(jnp.where(void[rows, columns], weights, 0.0), axis=0) >= 0.5


def weights_at(
    void: Bool[Array, "H W"] | None, points: Float[Array, "*shape 2"]
) -> Float[Array, "*shape"] | None:
    """0 for points in the void, 1 for others; None where void is background."""
    if void is None:
        return None
    return 1.0 - sample_void(void, points).astype(jnp.float32)


def _bit(octets: UInt8[Array, "..."], columns: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a column's bit is set in its octet; the first is the highest, as in
    ``numpy.packbits``.
    """
    shift = (7 - columns % 8).astype(jnp.uint8)
    shift = jnp.broadcast_to(shift, octets.shape)
    return (octets >> shift) & 1 == 1


# -------------------------------------------------------------------- which points


def select_points(
    maps: Float[Array, "G h w"],
    points: Float[Array, "G A 2"],
    num_points: int,
    num_uncertain: int,
    void: Bool[Array, "H W"] | None = None,
) -> Float[Array, "G P 2"]:
    """Where the logits ``maps`` are least certain, and elsewhere (PointRend).

    Of A - (``num_points`` - ``num_uncertain``) candidates the ``num_uncertain`` with
    the smallest absolute logit are kept; the last points are kept whatever their logit.
    Points in the void come last. No gradient passes.
    """
    points = jax.lax.stop_gradient(points)
    num_candidates = points.shape[1] - (num_points - num_uncertain)
    candidates, fresh = points[:, :num_candidates], points[:, num_candidates:]
    certainty = jnp.abs(sample_maps(jax.lax.stop_gradient(maps), candidates))
    if void is not None:
        certainty = jnp.where(sample_void(void, candidates), jnp.inf, certainty)
    chosen = places_of_least(certainty, num_uncertain)
    uncertain = jnp.take_along_axis(candidates, chosen[..., None], axis=1)
    return jnp.concatenate([uncertain, fresh], axis=1)


def places_of_least(values: Float[Array, "G N"], count: int) -> Int[Array, "G count"]:
    """Where the ``count`` least of each row are, in any order; of equal ones the first.

    ``values`` are not negative.
    """
    # XLA sorts in a heap on CPU, value by value: three times as slow.
    return jax.lax.platform_dependent(
        values,
        cpu=functools.partial(_places_by_counting, count=count),
        default=lambda values: jax.lax.top_k(-values, count)[1],
    )


def _places_by_counting(
    values: Float[Array, "G N"], count: int
) -> Int[Array, "G count"]:
    """The largest of the least is found bit by bit, then places are counted off."""
    # The bits of floats that are not negative are in the order of the floats.
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)

    # The largest is subtracted from all as it is found. XLA keeps what a loop changed;
    # it would sample the values anew in every part of what follows.
    def subtract_bit(i: Array, bits: Array) -> Array:
        bit = 1 << 30 >> i
        below = jnp.sum(bits < bit, axis=1, keepdims=True, dtype=jnp.int32)
        return jnp.where(below < count, bits - bit, bits)

    bits = jax.lax.fori_loop(0, 31, subtract_bit, bits)
    less, equal = bits < 0, bits == 0
    number = jnp.where(less, _running_count(less), count + 1)
    tied = _running_count(equal) + jnp.sum(less, axis=1, keepdims=True, dtype=jnp.int32)
    number = jnp.where(equal, tied, number)
    places = jnp.broadcast_to(jnp.arange(values.shape[1]), values.shape)
    rows = jnp.arange(len(values))[:, None]
    found = jnp.zeros((len(values), count), jnp.int32)
    return found.at[rows, number - 1].set(places, mode="drop")


def _running_count(mask: Bool[Array, "G N"]) -> Int[Array, "G N"]:
    # 2.5 times as fast there as jnp.cumsum.
    return jax.lax.associative_scan(jnp.add, mask.astype(jnp.int32), axis=1)
