"""Who sees whom among the tokens of a block, and where they are.

Where that is no plain mask of real tokens, the context attends by itself:
`MultiHeadAttention` hands it its queries, keys and values.
"""

import dataclasses

import jax.numpy as jnp

from mlseg_jax.models.layers.attention import attention
from mlseg_jax.models.layers.masked_attention import masked_attention
from mlseg_jax.models.layers.rotary import Rotation, rotate
from mlseg_jax.typing import Array, Bool, Float, PRNGKeyArray

Heads = Float[Array, "B L heads d"]


@dataclasses.dataclass(frozen=True)
class PlacedTokens:
    """Tokens are [others ; patches ; joined]: patches have a place in the picture.

    Attributes:
      num_others: class token and registers.
      num_patches: tokens after those.
      mask: which of all tokens are real; None when all are.
      rotation: of queries and keys of patches, by their place; None where positions
        were added to the tokens.
      seen: which patches each of the joined tokens sees; they see all other tokens.
        None when they see all patches, too.
    """

    # Leaves may be anything while JAX transforms it.
    __no_type_check__ = True

    num_others: int
    num_patches: int
    mask: Bool[Array, "B L"] | None = None
    rotation: Rotation | None = None
    seen: Bool[Array, "B N P"] | None = None

    def attend(
        self,
        query: Heads,
        key: Heads,
        value: Heads,
        dropout_rate: float,
        rng: PRNGKeyArray | None,
    ) -> Heads:
        """In two calls where some tokens see less, so that the others, which are most
        of them, stay on the quick path without masks (masks.md 7.5).

        What is masked is never dropped.
        """
        query, key = self.place(query), self.place(key)
        drop = {"dropout_rate": dropout_rate, "rng": rng}
        if self.seen is None:
            return attention(query, key, value, self.mask, **drop)
        rest, joined = jnp.split(query, [self.num_others + self.num_patches], axis=1)
        rest = attention(rest, key, value, self.mask, **drop)
        joined = masked_attention(joined, key, value, self._seen_tokens(key.shape[1]))
        return jnp.concatenate([rest, joined], axis=1)

    def place(self, heads: Heads) -> Heads:
        """Queries or keys, turned by the place of their token."""
        if self.rotation is None:
            return heads
        ends = [self.num_others, self.num_others + self.num_patches]
        others, patches, joined = jnp.split(heads, ends, axis=1)
        return jnp.concatenate([others, rotate(patches, self.rotation), joined], axis=1)

    def _seen_tokens(self, num_tokens: int) -> Bool[Array, "B N L"]:
        after = num_tokens - self.num_others - self.num_patches
        around = [(0, 0), (0, 0), (self.num_others, after)]
        seen = jnp.pad(self.seen, around, constant_values=True)
        return seen if self.mask is None else seen & self.mask[:, None]
