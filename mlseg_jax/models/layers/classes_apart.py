"""A transformer block over [image ; classes] in which no class is seen by any other."""

import jax.numpy as jnp

from mlseg_jax.distributed.sharding import copy_to_each_device, pin_examples
from mlseg_jax.models.layers.attention import attention, attention_with_own
from mlseg_jax.models.layers.block_stack import BlockStack
from mlseg_jax.models.layers.long_sequences import (
    is_long,
    over_rows,
    over_rows_in_training,
)
from mlseg_jax.models.layers.transformer import TransformerBlock, split_rng
from mlseg_jax.typing import Array, Bool, Float, PRNGKeyArray


def run_blocks_apart(
    blocks: BlockStack,
    image: Float[Array, "B L D"],
    classes: Float[Array, "C D"] | Float[Array, "B C D"],
    image_mask: Bool[Array, "B h w"] | None = None,
    rng: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B L D"], Float[Array, "B C D"]]:
    """`run_apart` block by block; ``image_mask`` says which of the tokens are real."""
    if image_mask is not None:
        image_mask = image_mask.reshape(image.shape[0], -1)
    # Gradients of parts are added up in the weights' own type.
    dtype = None if is_long(classes) else image.dtype
    rngs = [rng] if blocks.depth == 1 else split_rng(rng, blocks.depth)
    for place, block_rng in enumerate(rngs):
        inputs = pin_examples(image), classes, image_mask, block_rng
        image, classes = blocks.alone(run_apart, *inputs, dtype=dtype, place=place)
    return image, classes


def run_apart(
    block: TransformerBlock,
    image: Float[Array, "B L D"],
    classes: Float[Array, "C D"] | Float[Array, "B C D"],
    image_mask: Bool[Array, "B L"] | None = None,
    rng: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B L D"], Float[Array, "B C D"]]:
    """All tokens see the image; each class also sees itself.

    In training, classes that enter alike in every picture have their norm, queries,
    keys and values made once for all pictures of a device. Very many classes go in
    parts, of which training keeps what comes in and goes out and makes the rest again.
    """
    batch, heads = image.shape[0], block.attention
    image_rng, classes_rng = split_rng(rng, 2)
    query, keys, values = heads.project(block.attention_norm(image))

    def finish(tokens, seen, rngs):
        """The block after its attention, of what the tokens' heads have ``seen``."""
        out_rng, *rngs = rngs
        return block.add_branches(tokens, heads.join(seen, out_rng), 0.0, rngs)

    def refine(
        classes: Float[Array, "n C D"], rng: PRNGKeyArray | None
    ) -> Float[Array, "B C D"]:
        weight_rng, *rngs = split_rng(rng, 5)
        own = heads.project(block.attention_norm(classes))
        asks, own_keys, own_values = (_spread(x, batch) for x in own)
        seen = attention_with_own(
            *(asks, keys, values, own_keys, own_values, image_mask),
            dropout_rate=heads.dropout_rate,
            rng=weight_rng,
        )
        return finish(_spread(classes, batch), seen, rngs)

    if rng is None:
        classes = jnp.broadcast_to(classes, (batch, *classes.shape[-2:]))
        # Made of the image, or XLA would make it before the whole network and hold it.
        into = jnp.broadcast_to(image[:, :1, :1], classes.shape)
        classes = over_rows(lambda rows: refine(rows, None), classes, into=into)
    else:
        if classes.ndim == 2:
            classes = copy_to_each_device(classes, batch)
        classes = over_rows_in_training(refine, classes, classes_rng)
    if rng is None and is_long(image):
        return block(image, image_mask), classes

    weight_rng, *rngs = split_rng(image_rng, 5)
    drop = {"dropout_rate": heads.dropout_rate, "rng": weight_rng}
    seen = attention(query, keys, values, image_mask, **drop)
    return finish(image, seen, rngs), classes


def _spread(x: Float[Array, "n *shape"], batch: int) -> Float[Array, "B *shape"]:
    """What each of ``n`` devices, or examples, has once, for each of its examples."""
    copies, *shape = x.shape
    if copies == batch:
        return x
    each = (copies, batch // copies, *shape)
    return jnp.broadcast_to(x[:, None], each).reshape(batch, *shape)
