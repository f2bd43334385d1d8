"""A transformer block over [image ; classes] in which no class is seen by any other."""

import jax.numpy as jnp

from mlseg_jax.distributed.sharding import copy_to_each_device
from mlseg_jax.models.layers.attention import attention_with_own
from mlseg_jax.models.layers.long_sequences import over_rows, over_rows_in_training
from mlseg_jax.models.layers.transformer import TransformerBlock, split_rng
from mlseg_jax.typing import Array, Bool, Float, PRNGKeyArray


def run_apart(
    block: TransformerBlock,
    image: Float[Array, "B P D"],
    classes: Float[Array, "C D"] | Float[Array, "B C D"],
    image_mask: Bool[Array, "B P"] | None = None,
    rng: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B P D"], Float[Array, "B C D"]]:
    """All tokens see the image; each class also sees itself.

    Classes that enter alike in every picture have their norm, queries, keys and values
    made once for all pictures of a device. Very many classes go in parts, of which
    training keeps what comes in and goes out, and makes the rest again on its way back.
    """
    batch, attention = len(image), block.attention
    image_rng, classes_rng = split_rng(rng, 2)
    # The image's own pass makes them as well, and XLA sees that they are the same.
    _, keys, values = attention.project(block.attention_norm(image))

    def refine(classes: Float[Array, "n L D"], rng: PRNGKeyArray | None):
        weight_rng, out_rng, mlp_rng = split_rng(rng, 3)
        query, own_key, own_value = (
            _spread(x, batch) for x in attention.project(block.attention_norm(classes))
        )
        seen = attention_with_own(
            *(query, keys, values, own_key, own_value, image_mask),
            dropout_rate=attention.dropout_rate,
            rng=weight_rng,
        )
        classes = _spread(classes, batch) + attention.join_heads(seen, out_rng)
        return classes + block.mlp(classes, mlp_rng)

    if classes.ndim == 2:
        classes = copy_to_each_device(classes, batch)
    if rng is None:
        # To be written over. Made of the image, or XLA would make it before the whole
        # network and hold it.
        out = jnp.broadcast_to(image[:, :1, :1], (batch, *classes.shape[1:]))
        classes = over_rows(lambda _, rows: refine(rows, None), out, classes)
    else:
        classes = over_rows_in_training(refine, classes, classes_rng)
    return block(image, image_mask, 0.0, image_rng), classes


def _spread(x: Float[Array, "n L *D"], batch: int) -> Float[Array, "B L *D"]:
    """What each device has once, for each of its examples."""
    copies, *shape = x.shape
    each = (copies, batch // copies, *shape)
    return jnp.broadcast_to(x[:, None], each).reshape(batch, *shape)
