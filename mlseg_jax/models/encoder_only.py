"""Rows of the tables of parts: decoders that run the backbone's last blocks themselves.

The backbone is told how many these are, for it stops before them, and the decoder is
handed the backbone, for the blocks stay there: weights of others, layer decay and
freezing know them by their usual names.
"""

from mlseg_jax.errors import UserError
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.decoders.encoder_only import EncoderOnlyDecoder
from mlseg_jax.models.decoders.eomt import EomtDecoder
from mlseg_jax.models.sections import from_section

ENCODER_ONLY = ("eomt", "encoder_only")
"""Decoders that run the last ``depth`` blocks of the backbone."""


def held_back(config) -> dict:
    """What a backbone is told of the decoder that stands on it."""
    section = config.model.get("decoder", {})
    joins = section.get("name") in ENCODER_ONLY
    if joins and "depth" not in section:
        raise UserError(
            f"model.decoder.name={section.name!r} needs keys that this recipe has not; "
            f"start from configs/{section.name}.py."
        )
    return {"held_back": section.depth} if joins else {}


def check_held_back(config) -> None:
    backbone, count = config.model.backbone, held_back(config).get("held_back", 0)
    if count and (backbone.get("taps", ()) or backbone.get("pyramid", False)):
        raise UserError(
            f"model.decoder.name={config.model.decoder.name!r} takes the last patches "
            f"of the backbone as they are; set model.backbone.taps to () and "
            f"model.backbone.pyramid to False."
        )
    if count and config.model.class_embeddings.in_backbone:
        raise UserError(
            f"model.decoder.name={config.model.decoder.name!r} takes the backbone's "
            f"last blocks, which model.class_embeddings.in_backbone needs, too; set "
            f"that to False."
        )
    if count > backbone.depth:
        raise UserError(
            f"model.decoder.depth is {count}, but the backbone has {backbone.depth} "
            f"blocks; give a number up to that."
        )


def _check_encoder(config, backbone) -> None:
    if not isinstance(backbone, ViT):
        raise UserError(
            f"model.decoder.name={config.model.decoder.name!r} joins the last blocks "
            f"of a ViT; set model.backbone to one, or start from a file of configs/ "
            f"that has it."
        )


def build_eomt(config, backbone, **common):
    _check_encoder(config, backbone)
    section = config.model.decoder
    for key in ("mask_starts", "mask_ends"):
        if len(getattr(section, key)) not in (0, section.depth):
            raise UserError(
                f"model.decoder.{key} has {len(getattr(section, key))} shares for "
                f"{section.depth} blocks; give one for each, or () for no masks."
            )
    if section.image == "queries" and not 1 <= section.image_layer <= section.depth:
        raise UserError(
            f"model.decoder.image_layer is {section.image_layer}; give a block from 1 "
            f"to {section.depth}."
        )
    return from_section(EomtDecoder, section, {"backbone": backbone}, **common)


def build_encoder_only(config, backbone, **common):
    _check_encoder(config, backbone)
    section = config.model.decoder
    return from_section(EncoderOnlyDecoder, section, {"backbone": backbone}, **common)
