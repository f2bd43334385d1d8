"""Our Mask2Former and MaskFormer under the names of others (masks.md 8.1, 8.2).

The tables of `regions` give their uniform names; here these become those of files,
which transformers of both generations and Detectron2's code load.
"""

import re
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained import eomt, exact, regions, resnet
from mlseg_jax.pretrained.mapping import to_theirs

Arrays = dict[str, np.ndarray]
Names = Sequence[tuple[str, str]]
"""Patterns and what takes their place, one after the other."""

_TRANSFORMER = "model.transformer_module."
_SWIN = (
    (r"\.attention\.q_proj", ".attention.self.query"),
    (r"\.attention\.k_proj", ".attention.self.key"),
    (r"\.attention\.v_proj", ".attention.self.value"),
    (r"\.attention\.o_proj", ".attention.output.dense"),
    (r"\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1", ".intermediate.dense"),
    (r"\.mlp\.fc2", ".output.dense"),
)
_HUGGING_FACE = (
    (r"^pixels\.mask_features", "pixels.mask_projection"),
    (r"^pixels\.layers", "pixels.encoder.layers"),
    (r"^pixels\.", "model.pixel_level_module.decoder."),
    (r"^(queries\.layers\..*)\.o_proj", r"\1.out_proj"),
    (r"^queries\.layers", f"{_TRANSFORMER}decoder.layers"),
    (r"^queries\.norm", f"{_TRANSFORMER}decoder.layernorm"),
    (r"^queries\.positions", f"{_TRANSFORMER}queries_embedder.weight"),
    (r"^queries\.features", f"{_TRANSFORMER}queries_features.weight"),
    (r"^queries\.level_embed", f"{_TRANSFORMER}level_embed.weight"),
    (r"^queries\.input_projection", f"{_TRANSFORMER}input_projection"),
    (r"^classes", "class_predictor"),
)
_ENCODER = "model.pixel_level_module.encoder."
_RESNET = (
    *resnet.TO_HUGGING_FACE,
    (r"^backbone\.(embedder|encoder\.stages)\.", rf"{_ENCODER}\1."),
)
HUGGING_FACE = {
    "mask2former": (
        *_RESNET,
        (r"^backbone\.", _ENCODER),
        *_SWIN,
        (r"^queries\.mask_embed\.(\d)",
         rf"{_TRANSFORMER}decoder.mask_predictor.mask_embedder.\1.0"),
        *_HUGGING_FACE,
    ),
    "maskformer": (
        *_RESNET,
        # A Swin is a model in one more here, and its stages count from 0.
        *((rf"^backbone\.hidden_states_norms\.stage{i + 1}",
           f"{_ENCODER}hidden_states_norms.{i}") for i in range(4)),
        (r"^backbone\.", f"{_ENCODER}model."),
        *_SWIN,
        (r"^queries\.mask_embed\.(\d)", r"mask_embedder.\1.0"),
        *_HUGGING_FACE,
    ),
}  # fmt: skip
_DETECTRON2 = (
    *resnet.TO_DETECTRON2,
    (r"^pixels\.level_embed", "pixels.transformer.level_embed"),
    (r"^pixels\.layers", "pixels.transformer.encoder.layers"),
    (r"^pixels\.input_projections", "pixels.input_proj"),
    (r"^(pixels\.(?:adapter|layer)_\d)\.0\.", r"\1."),
    (r"^(pixels\.(?:adapter|layer)_\d)\.1\.", r"\1.norm."),
    (r"^pixels\.", "sem_seg_head.pixel_decoder."),
    (r"^classes", "queries.class_embed"),
    (r"^queries\.features", "queries.query_feat.weight"),
    (r"^queries\.positions", "queries.query_embed.weight"),
    (r"^queries\.level_embed", "queries.level_embed.weight"),
    (r"^queries\.mask_embed", "queries.mask_embed.layers"),
)
_PREDICTOR = (r"^queries\.", "sem_seg_head.predictor.")
DETECTRON2 = {
    "mask2former": (
        *_DETECTRON2, (r"^queries\.norm", "queries.decoder_norm"), _PREDICTOR
    ),
    "maskformer": (
        *_DETECTRON2, (r"^queries\.norm", "queries.transformer.decoder.norm"),
        _PREDICTOR,
    ),
}  # fmt: skip
_HUGGING_FACE_ROWS = {
    "mask2former": regions.hugging_face_mask2former,
    "maskformer": regions.hugging_face_maskformer,
}
_DETECTRON2_ROWS = {
    "mask2former": regions.detectron2_mask2former,
    "maskformer": regions.detectron2_maskformer,
}


def to_hugging_face(config: ml_collections.ConfigDict, arrays: Arrays) -> Arrays:
    """Names of transformers 4, whose files its fifth version takes as well.

    Raises:
      UserError: transformers has no such model.
    """
    if config.model.decoder.name == "eomt":
        return eomt.to_hugging_face(config, arrays)
    pixel_decoders = {"mask2former": ("deformable",), "maskformer": ("fpn",)}
    wanted = exact.PLAIN_CLASSES | {
        # Its models see pictures: even one frame has other positions.
        "task": ("semantic", "panoptic", "instance"),
        "model.backbone.name": ("swin", "resnet"),
    }
    found = _export(
        config, arrays, _HUGGING_FACE_ROWS, HUGGING_FACE, pixel_decoders, wanted
    )
    # PyTorch counts batches beside every running mean, and misses the counters.
    means = (name for name in found if name.endswith("running_mean"))
    counters = [name.replace("running_mean", "num_batches_tracked") for name in means]
    return found | {name: np.zeros((), np.int64) for name in counters}


RELEASE = exact.PLAIN_TOP_K | {
    "selection.name": ("top_k",),
    "model.multilabel_head.name": ("projected_encoder",),
    "model.multilabel_head.projection": ("linear",),
    "model.multilabel_head.downsample": (0,),
    "model.multilabel_head.share_embeddings": (False,),
    "model.multilabel_head.class_projection": (False,),
    "model.multilabel_head.classes_apart": (False,),
    "model.decoder.image": ("queries",),
    "model.decoder.image_layer": (3,),
    "model.decoder.cosine": (True,),
    "model.rank_norm.kind": ("affine",),
    "model.rank_norm.unbiased_variance": (False,),
    "model.presence_prior.kind": ("none",),
}
"""MLSeg on Mask2Former (method.md 11.2); there is no code with MaskFormer."""


def to_detectron2(config: ml_collections.ConfigDict, arrays: Arrays) -> Arrays:
    """Names of Detectron2's second module version, and of the authors' release.

    Raises:
      UserError: neither code has such a model.
    """
    pixel_decoders = {
        "mask2former": ("deformable",),
        "maskformer": ("fpn", "encoder_fpn"),
    }
    is_release = (
        config.model.decoder.name == "mask2former"
        and config.model.multilabel_head.name != "none"
    )
    wanted = exact.PLAIN_CLASSES
    if is_release:
        # Its code has a head for every 64 values.
        width = config.model.multilabel_head.embed_dim
        wanted = RELEASE | {"model.multilabel_head.num_heads": (width // 64,)}
    wanted = wanted | {
        "model.backbone.name": ("swin", "resnet"),
        "model.backbone.shift_small_maps": (True,),
    }
    return _export(config, arrays, _DETECTRON2_ROWS, DETECTRON2, pixel_decoders, wanted)


def _export(
    config: ml_collections.ConfigDict,
    arrays: Arrays,
    rows: dict[str, Callable],
    names: dict[str, Names],
    pixel_decoders: dict[str, tuple[str, ...]],
    wanted: dict[str, tuple],
) -> Arrays:
    kind = config.model.decoder.name
    if kind not in rows:
        raise UserError(
            f"These names are those of {' and '.join(rows)}, but model.decoder.name is "
            f"{kind!r}; choose --to=safetensors."
        )
    wanted = wanted | {
        "model.backbone.num_norms": (4,),
        "model.backbone.stem": ("plain",),
        "model.backbone.strides": ((1, 2, 2, 2),),
        "model.backbone.dilations": ((1, 1, 1, 1),),
        "model.pixel_decoder.name": pixel_decoders[kind],
        "model.pixel_decoder.num_groups": (32,),
    }
    if config.model.pixel_decoder.name != "fpn":
        # One number of heads is both decoders'.
        heads = (config.model.decoder.num_heads,)
        wanted["model.pixel_decoder.num_heads"] = heads
        wanted["model.pixel_decoder.num_points"] = (4,)
    exact.check(config, kind, wanted)
    arrays = _with_no_object(to_theirs(arrays, rows[kind](config)))
    # A constant of the loss, which strict loading asks for.
    count = len(arrays["classes.weight"])
    weights = np.ones(count, np.float32)
    weights[-1] = config.loss.regions.no_object_weight
    renamed = {"criterion.empty_weight": weights}
    for name, array in arrays.items():
        for pattern, new in names[kind]:
            name = re.sub(pattern, new, name)
        renamed[name] = array
    return renamed


def _with_no_object(arrays: Arrays) -> Arrays:
    """The classes and no-object as one array, no-object last."""
    arrays = dict(arrays)
    for leaf in ("weight", "bias"):
        own = arrays.pop(f"no_object.{leaf}", None)
        if own is not None:
            rows = arrays[f"classes.{leaf}"]
            arrays[f"classes.{leaf}"] = np.concatenate([rows, own])
    return arrays
