"""Label scores keep float32's resolution where the model computes in bfloat16."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layers import normal

from mlseg_jax.models.interfaces import Embeddings, FeatureMap
from mlseg_jax.models.multilabel_heads.global_pooling import GlobalPoolingHead
from mlseg_jax.models.multilabel_heads.linear import LinearHead
from mlseg_jax.models.multilabel_heads.transformer_encoder import (
    TransformerEncoderHead,
)

CLASSES, WIDTH = 2000, 8
ENCODER = dict(embed_dim=WIDTH, num_heads=2, dropout_rate=0.0, downsample=0)


@pytest.mark.parametrize(
    "make, sizes",
    [
        (GlobalPoolingHead, dict(image_dim=WIDTH, downsample=2)),
        (LinearHead, dict(image_dim=WIDTH)),
        (TransformerEncoderHead, ENCODER),
    ],
)
def test_labels_do_not_tie_in_bfloat16(make, sizes):
    head = make(num_classes=CLASSES, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **sizes)
    image = FeatureMap(normal(0, 1, 4, 4, WIDTH).astype(jnp.bfloat16))
    classes = normal(1, CLASSES, WIDTH).astype(jnp.bfloat16)
    scores = np.asarray(head(Embeddings(image, image), classes).scores)
    assert scores.dtype == np.float32
    # 8 bits have a few hundred values in such a range.
    assert len(np.unique(scores)) > 0.9 * CLASSES
