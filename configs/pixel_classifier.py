"""What DeepLabv3, UPerNet and the linear classifier have in common.

Their pixel embeddings meet the rows of the selected labels in a dot product, and the
multi-label head stands beside them (method.md section 9.1).
"""

from ml_collections import ConfigDict

from configs import common
from mlseg_jax.settings import base


def recipe(
    name: str,
    args: ConfigDict,
    *,
    side: int,
    base_size: tuple[int, int],
    steps: int,
    backbone: ConfigDict,
    decoder: dict,
    multilabel_head: ConfigDict,
    auxiliary_head: ConfigDict | dict,
) -> ConfigDict:
    """A configuration of ``args.dataset`` and ``args.selection`` without an optimiser.

    Only labels that are to be found have a multi-label head, and only labels that are
    ranked a rank norm. Pictures are tested as a whole.
    """
    config = base.base(name)
    config.data = base.data(
        name=args.dataset,
        crop_size=(side, side),
        base_size=base_size,
        normalisation="imagenet",
    )
    common.use_labels(config, args.dataset, args.selection)
    common.use_schedule(config, steps)
    has_head = args.selection == "top_k"
    config.model = ConfigDict(
        {
            "backbone": backbone,
            "decoder": decoder,
            "multilabel_head": multilabel_head if has_head else {"name": "none"},
            # As of configs/segmenter.py.
            "class_embeddings": {"in_backbone": False, "initial": "normal"},
            "auxiliary_head": auxiliary_head,
            # affine, shared, temperature, none (rank_adaptive.py).
            "rank_norm": {
                "kind": "none" if args.selection == "complete" else "affine",
                "unbiased_variance": False,
            },
            "dtype": "float32",
        }
    )
    config.train.batch_size = 16
    config.eval.mode = "whole"
    config.eval.window = config.eval.stride = (side, side)
    return config


def projected_encoder(
    downsample: int,
    *,
    num_heads: int,
    share_embeddings: bool = True,
    class_projection: bool = False,
) -> ConfigDict:
    """The multi-label head beside convolutional decoders (method.md section 9.1)."""
    return ConfigDict(
        {
            "name": "projected_encoder",
            # Bins a side that the backbone's map is pooled to; 0 keeps it as it is.
            "downsample": downsample,
            "num_heads": num_heads,
            "dropout_rate": 0.1,
            # The pixel classifier's rows are the class tokens, or else own rows.
            "share_embeddings": share_embeddings,
            # A matrix between them that only the published counts have.
            "class_projection": bool(class_projection),
            # As of configs/segmenter.py.
            "classes_apart": False,
            "mlp_ratio": 4,
        }
    )


def fcn_head(level: int) -> ConfigDict:
    """The auxiliary head: a pixel loss over all C classes on an earlier map."""
    return ConfigDict(
        {
            # none or fcn (decoders/auxiliary.py).
            "name": "fcn",
            # Which of the backbone's maps.
            "level": level,
            "embed_dim": 256,
            "dropout_rate": 0.1,
            # Of its loss.
            "weight": 0.4,
        }
    )
