"""Shipped configurations made small enough to test."""

import ml_collections
import numpy as np

from configs import segmenter

NUM_CLASSES = 11


TINY_BACKBONES = {
    "vit": dict(
        embed_dim=16,
        depth=1,
        num_heads=2,
        mlp_dim=64,
        patch_size=4,
        norm_epsilon=1e-6,
        position_resize="bicubic",
        image_size=(24, 24),
    ),
    "swin": dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=3),
}
"""What each kind of backbone has in tests, beside ``scan`` and ``remat``."""


def use_tiny_backbone(config: ml_collections.ConfigDict, name: str, **more) -> None:
    others = {"scan": False, "remat": "none", "drop_path_rate": 0.0}
    with config.unlocked():
        config.model.backbone = ml_collections.ConfigDict(
            {"name": name} | TINY_BACKBONES[name] | others | more
        )


def segmenter_config(
    selection: str = "top_k", k: int = 4, **backbone
) -> ml_collections.ConfigDict:
    """``configs/segmenter.py`` with a tiny backbone that takes normalised images."""
    config = segmenter.get_config(
        f"dataset=ade20k,backbone=vit_ti16,selection={selection}"
    )
    with config.unlocked():
        config.data.update(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        config.selection.k = k
        sizes = dict(embed_dim=16, depth=2, num_heads=2, patch_size=4)
        config.model.backbone.update(
            sizes | {"image_size": (24, 24), "drop_path_rate": 0.0} | backbone
        )
        config.model.backbone.mlp_dim = 4 * config.model.backbone.embed_dim
        config.model.decoder.dropout_rate = 0.0
    return config


def random_parameters(model, seed: int = 0) -> dict[str, np.ndarray]:
    """Values as of a trained model: nothing is left at 0, at 1 or tiny."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for path, leaf in sorted(model.shapes.items()):
        values = rng.standard_normal(leaf.shape)
        if path.endswith("scale"):
            values = 1.0 + 0.25 * values
        elif path.endswith("/var"):
            values = 0.5 + np.abs(values)
        elif path.endswith("kernel"):
            values = values * leaf.shape[-2] ** -0.5
        elif leaf.ndim == 1:
            values = 0.2 * values
        parameters[path] = values.astype(np.float32)
    return parameters
