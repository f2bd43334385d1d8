"""Shipped configurations made small enough to test."""

import math

import ml_collections
import numpy as np

from configs import common, deeplabv3, linear, segmenter, upernet
from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.open import open_dataset
from input_pipeline.pipeline import train_batches
from mlseg_jax.settings.resolve import AUTO
from mlseg_jax.typing import IGNORE

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
        taps=(),
        num_registers=0,
        layer_scale=0.0,
        gated=False,
        positions="table",
        key_bias=True,
    ),
    "beit": dict(
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_dim=32,
        patch_size=4,
        image_size=(24, 24),
        taps=(0, 0, 1, 1),
        layer_scale=0.1,
    ),
    "swin": dict(
        embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=3, num_norms=2
    ),
    "resnet": dict(
        embed_dim=2,
        depths=(1, 3),
        strides=(1, 1),
        dilations=(1, 2),
        contract_dilation=True,
        stem="deep",
        freeze_norms=False,
    ),
    "tresnet": dict(embed_dim=8, depths=(1, 1), bottlenecks=(False, False)),
}
"""What each kind of backbone has in tests, beside ``scan`` and ``remat``."""


def use_tiny_backbone(config: ml_collections.ConfigDict, name: str, **more) -> None:
    others = {"scan": False, "remat": "none", "drop_path_rate": 0.0}
    with config.unlocked():
        config.model.backbone = ml_collections.ConfigDict(
            {"name": name} | TINY_BACKBONES[name] | others | more
        )


REGIONS = dict(
    embed_dim=16,
    num_queries=5,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    cosine=True,
    image="queries",
    image_layer=1,
)

TINY_DECODERS = {
    "segmenter": dict(depth=1),
    "encnet": dict(depth=1, num_codes=3),
    "essnet": dict(depth=1, cosine_dim=8),
    "linear": {},
    "upernet": dict(embed_dim=16),
    "deeplabv3": dict(embed_dim=16, dilations=(1, 2, 3)),
    "mask2former": dict(REGIONS),
    "maskformer": dict(REGIONS),
    "eomt": dict(
        num_queries=5,
        depth=1,
        cosine=True,
        image="pixels",
        image_layer=1,
        mask_starts=(0.0,),
        mask_ends=(1.0,),
    ),
    "encoder_only": dict(depth=1),
}
"""What each kind of decoder has in tests, beside ``dropout_rate``. All are as wide as
the last map of `TINY_BACKBONES`, so that every head fits every one of them.
"""

PUBLISHED_ON = {"mask2former": "deformable", "maskformer": "fpn"}
"""Decoders of regions, and the pixel decoder that they stand on in tests."""


TINY_PIXEL_DECODERS = {
    "deformable": dict(depth=1, num_heads=2, num_points=2, mlp_dim=24),
    "encoder_fpn": dict(depth=1, num_heads=2, mlp_dim=24),
    "fpn": {},
}
"""What each kind of pixel decoder has in tests."""


def use_tiny_pixel_decoder(config: ml_collections.ConfigDict, name: str) -> None:
    sizes = dict(embed_dim=16, num_groups=4, dropout_rate=0.0)
    with config.unlocked():
        config.model.pixel_decoder = ml_collections.ConfigDict(
            {"name": name} | sizes | TINY_PIXEL_DECODERS[name]
        )


def use_tiny_decoder(config: ml_collections.ConfigDict, name: str, **more) -> None:
    if name in PUBLISHED_ON:
        use_tiny_pixel_decoder(config, PUBLISHED_ON[name])
    with config.unlocked():
        config.model.decoder = ml_collections.ConfigDict(
            {"name": name, "dropout_rate": 0.0} | TINY_DECODERS[name] | more
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


def deeplabv3_config(
    selection: str = "top_k", k: int = 4, **backbone
) -> ml_collections.ConfigDict:
    """``configs/deeplabv3.py`` for pictures of 32 pixels, without dropout."""
    config = deeplabv3.get_config(f"dataset=sign_scenes,selection={selection}")
    _weigh_labels(config)
    with config.unlocked():
        config.data.update(
            num_classes=NUM_CLASSES,
            crop_size=(32, 32),
            pixel_mean=(100.0,) * 3,
            pixel_std=(50.0,) * 3,
        )
        config.selection.k = k
        sizes = dict(embed_dim=4, depths=(1, 3), strides=(1, 2), dilations=(1, 2))
        config.model.backbone.update(sizes | {"stem": "plain"} | backbone)
        config.model.decoder.update(embed_dim=16, dilations=(1, 2, 3), dropout_rate=0.0)
        config.model.auxiliary_head.update(level=0, embed_dim=8, dropout_rate=0.0)
        if selection == "top_k":
            config.model.multilabel_head.update(
                num_heads=2, downsample=3, dropout_rate=0.0
            )
        config.optimizer.update(schedule="constant", learning_rate=3e-3, warmup_steps=0)
        config.train.batch_size = 8
    return config


def upernet_config(
    selection: str = "top_k", k: int = 4, backbone: str = "swin_t", **more
) -> ml_collections.ConfigDict:
    """``configs/upernet.py`` for pictures of 48 pixels, without dropout."""
    config = upernet.get_config(
        f"dataset=sign_scenes,backbone={backbone},selection={selection}"
    )
    use_tiny_backbone(config, config.model.backbone.name, **more)
    return _use_tiny_data(config, selection, k)


def linear_config(
    selection: str = "top_k", k: int = 4, **backbone
) -> ml_collections.ConfigDict:
    """``configs/linear.py`` for pictures of 48 pixels, all of it trained."""
    config = linear.get_config(f"dataset=sign_scenes,selection={selection},frozen=0")
    more = dict(num_registers=2, gated=True, layer_scale=1.0) | backbone
    use_tiny_backbone(config, "vit", **more)
    return _use_tiny_data(config, selection, k)


def _weigh_labels(config):
    """A weight under which the label loss, that falls first, shows in the total."""
    if config.loss.multilabel_weight == AUTO:
        common.set_label_weight(config, 10.0)


def _use_tiny_data(config, selection, k):
    _weigh_labels(config)
    with config.unlocked():
        config.data.update(
            num_classes=NUM_CLASSES,
            crop_size=(48, 48),
            pixel_mean=(100.0,) * 3,
            pixel_std=(50.0,) * 3,
        )
        config.selection.k = k
        config.model.decoder.update(dropout_rate=0.0)
        if "embed_dim" in config.model.decoder:
            config.model.decoder.embed_dim = 16
            config.model.auxiliary_head.update(embed_dim=8, level=1, dropout_rate=0.0)
        if selection == "top_k":
            config.model.multilabel_head.update(num_heads=2, dropout_rate=0.0)
        config.optimizer.update(schedule="constant", learning_rate=3e-3, warmup_steps=0)
        config.train.batch_size = 8
    return config


def scene_batch(config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """A training batch of SignScenes, of whose 20 labels the model knows the first."""
    data = config.data.copy_and_resolve_references()
    with data.unlocked():
        data.update(train_examples=2 * config.train.batch_size, num_classes=20)
    source = open_dataset(data, train=True)
    batches = train_batches(
        source,
        seed=0,
        batch_size=config.train.batch_size,
        augment=make_augment(data, None, source.info),
    )
    batch = next(batches)
    batches.close()
    labels = batch["label_map"]
    return batch | {"label_map": np.where(labels < NUM_CLASSES, labels, IGNORE)}


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
            # Matrices, kernels of convolutions, stacks of either.
            fan_in = leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1]
            values = values * math.prod(fan_in) ** -0.5
        elif path.endswith("/var"):
            values = 0.5 + values**2
        elif leaf.ndim == 1:
            values = 0.2 * values
        parameters[path] = values.astype(np.float32)
    return parameters
