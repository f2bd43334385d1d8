"""What the transformers library must know of our models of regions beside the weights:
its ``config.json`` (masks.md 8.1 to 8.3).
"""

import math
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
        "no_object_weight": loss.no_object_weight,
        "mask_weight": loss.mask_weight,
        "dice_weight": loss.dice_weight,
    }
    if model.decoder.name == "eomt":
        return common | _eomt(model, loss)
    common["mask_feature_size"] = model.pixel_decoder.embed_dim
    if model.decoder.name == "mask2former":
        return common | _mask2former(model, loss)
    return common | _maskformer(model, loss)


def _mask2former(model, loss) -> dict:
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": _backbone(model.backbone, "swin"),
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
        # Predictions of all layers are trained on. (With it MaskFormer of transformers
        # fails in evaluation.)
        "use_auxiliary_loss": True,
        "class_weight": loss.class_weight,
        "train_num_points": loss.num_points,
        "oversample_ratio": loss.oversample,
        "importance_sample_ratio": loss.importance,
    }


def _eomt(model, loss) -> dict:
    backbone, patch = model.backbone, model.backbone.patch_size
    settings = {
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.num_heads,
        "patch_size": patch,
        "num_register_tokens": backbone.num_registers,
        "layer_norm_eps": backbone.norm_epsilon,
        "drop_path_rate": backbone.drop_path_rate,
        "num_blocks": model.decoder.depth,
        "num_queries": model.decoder.num_queries,
        "num_upscale_blocks": max(1, int(math.log2(patch)) - 2),
        "class_weight": loss.class_weight,
        "train_num_points": loss.num_points,
        "oversample_ratio": loss.oversample,
        "importance_sample_ratio": loss.importance,
    }
    if backbone.positions == "rotary":
        # Pictures have any size here, and one size there.
        return settings | {
            "model_type": "eomt_dinov3",
            "architectures": ["EomtDinov3ForUniversalSegmentation"],
            "intermediate_size": backbone.mlp_dim,
            "use_gated_mlp": backbone.gated,
            "hidden_act": "silu" if backbone.gated else "gelu",
            "image_size": 640,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        }
    # A gated layer has two thirds of the width that they name.
    hidden = backbone.mlp_dim * 3 // 2 if backbone.gated else backbone.mlp_dim
    return settings | {
        "model_type": "eomt",
        "architectures": ["EomtForUniversalSegmentation"],
        "mlp_ratio": hidden // backbone.embed_dim,
        "use_swiglu_ffn": backbone.gated,
        "image_size": backbone.image_size[0],
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
        "backbone_config": _backbone(model.backbone, "maskformer-swin"),
        "decoder_config": decoder,
        "fpn_feature_size": model.pixel_decoder.embed_dim,
        "cross_entropy_weight": loss.class_weight,
    }


def _backbone(backbone, swin: str) -> dict:
    """``swin``: what a Swin within such a model is called."""
    stages = {"out_features": [f"stage{i + 1}" for i in range(len(backbone.depths))]}
    if backbone.name == "resnet":
        return stages | {
            "model_type": "resnet",
            "embedding_size": backbone.embed_dim,
            "hidden_sizes": [
                (4 if backbone.bottleneck else 1) * backbone.embed_dim * 2**i
                for i in range(len(backbone.depths))
            ],
            "depths": list(backbone.depths),
            "layer_type": "bottleneck" if backbone.bottleneck else "basic",
        }
    return stages | {
        "model_type": swin,
        "embed_dim": backbone.embed_dim,
        "depths": list(backbone.depths),
        "num_heads": list(backbone.num_heads),
        "window_size": backbone.window_size,
        "mlp_ratio": float(backbone.mlp_ratio),
        "drop_path_rate": backbone.drop_path_rate,
    }
