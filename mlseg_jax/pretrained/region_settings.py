"""What the transformers library must know of our Mask2Former and MaskFormer beside the
weights: its ``config.json`` (masks.md 8.1, 8.2).
"""

from collections.abc import Sequence

import ml_collections


def hugging_face_settings(
    config: ml_collections.ConfigDict, class_names: Sequence[str]
) -> dict:
    """With it ``from_pretrained`` builds the model that `region_exports` fills."""
    model, loss = config.model, config.loss.regions
    id2label = dict(enumerate(class_names))
    common = {
        "id2label": id2label,
        "label2id": {name: i for i, name in id2label.items()},
        "mask_feature_size": model.pixel_decoder.embed_dim,
        "no_object_weight": loss.no_object_weight,
        "mask_weight": loss.mask_weight,
        "dice_weight": loss.dice_weight,
        # Predictions of all layers are trained on.
        "use_auxiliary_loss": True,
    }
    if model.decoder.name == "mask2former":
        return common | _mask2former(model, loss)
    return common | _maskformer(model, loss)


def _mask2former(model, loss) -> dict:
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": _swin(model.backbone) | {"model_type": "swin"},
        "feature_size": model.pixel_decoder.embed_dim,
        "encoder_layers": model.pixel_decoder.depth,
        "encoder_feedforward_dim": model.pixel_decoder.mlp_dim,
        "hidden_dim": model.decoder.embed_dim,
        # Theirs counts predictions, and there is one before the first layer.
        "decoder_layers": model.decoder.depth + 1,
        "num_attention_heads": model.decoder.num_heads,
        "dim_feedforward": model.decoder.mlp_dim,
        "num_queries": model.decoder.num_queries,
        "dropout": 0.0,
        "class_weight": loss.class_weight,
        "train_num_points": loss.num_points,
        "oversample_ratio": loss.oversample,
        "importance_sample_ratio": loss.importance,
    }


def _maskformer(model, loss) -> dict:
    decoder = {
        "model_type": "detr",
        "d_model": model.decoder.embed_dim,
        "encoder_layers": 0,
        "decoder_layers": model.decoder.depth,
        "decoder_attention_heads": model.decoder.num_heads,
        "decoder_ffn_dim": model.decoder.mlp_dim,
        "num_queries": model.decoder.num_queries,
        "dropout": model.decoder.dropout_rate,
    }
    return {
        "model_type": "maskformer",
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "backbone_config": _swin(model.backbone) | {"model_type": "maskformer-swin"},
        "decoder_config": decoder,
        "fpn_feature_size": model.pixel_decoder.embed_dim,
        "cross_entropy_weight": loss.class_weight,
    }


def _swin(backbone) -> dict:
    return {
        "embed_dim": backbone.embed_dim,
        "depths": list(backbone.depths),
        "num_heads": list(backbone.num_heads),
        "window_size": backbone.window_size,
        "mlp_ratio": float(backbone.mlp_ratio),
        "drop_path_rate": backbone.drop_path_rate,
        "out_features": [f"stage{i + 1}" for i in range(len(backbone.depths))],
    }
