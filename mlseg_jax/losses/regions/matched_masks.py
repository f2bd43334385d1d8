"""Mask losses of matched queries, a few masks at a time, with their gradients.

Gradients are made in the same pass as the losses: points are drawn and chosen once,
nothing is kept for a second pass, and the pass ends with the number of valid targets,
not of padded ones.
"""

import functools

import jax
import jax.numpy as jnp

from mlseg_jax.losses.regions import mask, points
from mlseg_jax.losses.regions.costs import of_prediction
from mlseg_jax.losses.regions.targets import segment_pixels
from mlseg_jax.models.layers.resize import bilinear_matrix
from mlseg_jax.typing import IGNORE

CHUNK = 4
"""Matched queries whose masks exist at a time, on each device."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mask_losses(settings, embeddings, features, queries, targets, image, draw):
    """Weighted sum ``[B]`` of mask losses and dice, and both ``[B P 2]``.

    Gradients are of the former alone, to embeddings and features, of which there may be
    a tuple, one for each prediction.
    """
    own = embeddings, features, queries, targets, image
    image_losses = functools.partial(_image_losses, settings, draw, False)
    return jax.lax.map(lambda own: image_losses(*own)[0], own)


def _forward(settings, embeddings, features, queries, targets, image, draw):
    own = embeddings, features, queries, targets, image
    image_losses = functools.partial(_image_losses, settings, draw, True)
    losses, grads = jax.lax.map(lambda own: image_losses(*own), own)
    like = jax.tree.map(lambda x: x[:0], (embeddings, features))  # for their types
    return losses, (grads, like)


def _backward(settings, residuals, cotangents):
    grads, like = residuals

    def scaled(x, old):
        scale = cotangents[0].reshape(-1, *(1,) * (x.ndim - 1))
        return (x * scale).astype(old.dtype)

    return (*jax.tree.map(scaled, grads, like), *(None,) * 4)


mask_losses.defvjp(_forward, _backward)


def _image_losses(
    settings, draw, with_grads, embeddings, features, queries, targets, image
):
    """Losses of one image, and the gradients of their weighted sum.

    One loop over predictions and chunks of valid targets.
    """
    embeddings = embeddings.astype(jnp.float32)
    features = jax.tree.map(lambda x: x.astype(jnp.float32), features)
    features_of = of_prediction(features)
    several = isinstance(features, tuple)
    num_targets = targets.valid.shape[0]
    order = jnp.pad(jnp.argsort(~targets.valid), (0, -num_targets % CHUNK))
    num_valid = jnp.sum(targets.valid, dtype=jnp.int32)
    num_chunks = -(-num_valid // CHUNK)
    compare = functools.partial(_pair_losses, settings, draw, targets, image)

    def step(i, state):
        parts, embedding_grads, feature_grads = state
        prediction, chunk = i // num_chunks, i % num_chunks
        here = chunk * CHUNK + jnp.arange(CHUNK)
        own = order[here]
        query = queries[prediction, own]
        counts = (here < num_valid) & (query != IGNORE)
        query = jnp.maximum(query, 0)
        chosen = embeddings[prediction, query]
        pairs = functools.partial(compare, prediction, own, counts)
        features = features_of(prediction)
        if with_grads:
            (_, losses), grads = jax.value_and_grad(pairs, (0, 1), has_aux=True)(
                chosen, features
            )
            embedding_grads = embedding_grads.at[prediction, query].add(grads[0])
            if several:
                feature_grads = feature_grads.at[prediction].add(grads[1])
            else:
                feature_grads = feature_grads + grads[1]
        else:
            _, losses = pairs(chosen, features)
        return parts.at[prediction].add(losses), embedding_grads, feature_grads

    parts = jnp.zeros((len(embeddings), 2))
    grads = (0.0, 0.0)
    if with_grads:
        stacked = jnp.stack(features) if several else features
        grads = jnp.zeros_like(embeddings), jnp.zeros_like(stacked)
    state = (parts, *grads)
    parts, *grads = jax.lax.fori_loop(0, len(embeddings) * num_chunks, step, state)
    if with_grads and several:
        grads[1] = tuple(grads[1])
    weights = jnp.asarray([settings.mask_weight, settings.dice_weight])
    return (jnp.sum(parts @ weights), parts), tuple(grads)


def _pair_losses(
    settings, draw, targets, image, prediction, own, counts, embeddings, features
):
    """Of a few matched queries: the weighted sum, and mask loss and dice ``[2]``.

    Each frame of a clip has a mask of its own, and points of its own (method.md 11.1).
    """
    features = features.reshape(-1, *features.shape[-3:])
    maps = jnp.einsum("gd,thwd->tghw", embeddings, features)
    if settings.mask == "focal":
        logits, labels, weights = _at_pixels(maps, targets, own)
        losses = mask.focal_at(logits, labels)
    else:
        logits, labels, weights = _at_points(
            settings, draw, maps, targets, image, prediction, own
        )
        losses = mask.binary_cross_entropy_at(logits, labels)
    both = jnp.stack(
        [mask.mean_at(losses, weights), mask.dice(logits, labels, weights)]
    )
    counts = jnp.tile(counts, len(maps))
    both = jnp.sum(jnp.where(counts[None], both, 0.0), axis=1)
    return both @ jnp.asarray([settings.mask_weight, settings.dice_weight]), both


def _at_points(settings, draw, maps, targets, image, prediction, own):
    """Logits, labels and weights ``[T*G P]`` at uncertain points of each map."""
    num_frames = len(maps)
    count = settings.num_candidates + settings.num_points - settings.num_uncertain

    def of_frame(frame, maps, masks, void):
        streams = 1 + own * num_frames + frame
        drawn = jax.vmap(lambda s: draw(prediction, image, s, count))(streams)
        where = points.select_points(
            maps, drawn, settings.num_points, settings.num_uncertain, void
        )
        logits = points.sample_maps(maps, where)
        labels = points.sample_segments(masks, targets.size, own, where)
        return logits, labels, points.weights_at(void, where)

    frames = jnp.arange(num_frames, dtype=own.dtype)
    found = jax.vmap(of_frame)(frames, maps, *targets.frames())
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), found)


def _at_pixels(maps, targets, own):
    """Logits, labels and weights ``[T*G HW]`` at all pixels of the crop."""
    height, width = targets.size
    rows = jnp.asarray(bilinear_matrix(height, maps.shape[2]))
    columns = jnp.asarray(bilinear_matrix(width, maps.shape[3]))
    logits = jnp.einsum("Hh,tghw,Ww->tgHW", rows, maps, columns)
    masks, void = targets.frames()
    labels = jax.vmap(lambda each: segment_pixels(each, targets.size, own))(masks)
    weights = None
    if void is not None:
        weights = jnp.broadcast_to(~void[:, None], logits.shape)
        weights = weights.astype(jnp.float32).reshape(-1, height * width)
    shape = (-1, height * width)
    return logits.reshape(shape), labels.reshape(shape), weights
