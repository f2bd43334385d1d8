"""What others' code has fixed: an export is exact, or it is refused.

Settings without a parameter of their own would be lost without a word under the names
of others, whose code then computes something else with the same weights.
"""

from collections.abc import Mapping

import ml_collections

from mlseg_jax.errors import UserError


def check(
    config: ml_collections.ConfigDict, model: str, wanted: Mapping[str, tuple]
) -> None:
    """``wanted``: keys, and the values that ``model`` of others stands for. A key that
    the configuration has not is as in every model without it.

    Raises:
      UserError: a key has another value.
    """
    for key, values in wanted.items():
        value = config
        for part in key.split("."):
            value = value.get(part) if value is not None else None
        if value is not None and value not in values:
            raise UserError(
                f"{key} is {value!r}, and there is no {model} with that under these "
                f"names; choose --to=safetensors."
            )


PLAIN_TOP_K = {"selection.minimum_score": (0.0,), "selection.cumulative": (1.0,)}
"""As many labels of every picture: the release counts none out by its score."""

PLAIN_CLASSES = {
    "model.multilabel_head.name": ("none",),
    "model.rank_norm.kind": ("none",),
    "model.decoder.cosine": (False,),
    "model.presence_prior.kind": ("none",),
}
"""Regions are classified by a linear layer alone."""
