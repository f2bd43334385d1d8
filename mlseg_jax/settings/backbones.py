"""Tables of backbones, and the part of a configuration that says which one.

Those called ``_demo`` are for SignScenes on a processor; there are no weights of them.
"""

from ml_collections import ConfigDict

from mlseg_jax.settings.arguments import choose

VITS = {
    # name: width, depth, heads, patch
    "vit_demo": (128, 4, 4, 12),
    "vit_ti16": (192, 12, 3, 16),
    "vit_s16": (384, 12, 6, 16),
    "vit_b16": (768, 12, 12, 16),
    "vit_l16": (1024, 24, 16, 16),
}
"""Sizes of vision transformers; the hidden layer of the MLP is four times the width."""

DINOV2S = {
    # name: width, depth, heads, hidden layer of the MLP, gated
    "dinov2_demo": (128, 4, 4, 512, False),
    "dinov2_s14": (384, 12, 6, 1536, False),
    "dinov2_b14": (768, 12, 12, 3072, False),
    "dinov2_l14": (1024, 24, 16, 4096, False),
    "dinov2_g14": (1536, 40, 24, 4096, True),
}
"""Vision transformers of DINOv2; ``_reg`` behind a name adds its four registers."""

DINOV3S = {
    # name: width, depth, heads, hidden layer of the MLP, gated, patch
    "dinov3_demo": (128, 4, 4, 512, False, 12),
    "dinov3_s16": (384, 12, 6, 1536, False, 16),
    "dinov3_s16plus": (384, 12, 6, 1536, True, 16),
    "dinov3_b16": (768, 12, 12, 3072, False, 16),
    "dinov3_l16": (1024, 24, 16, 4096, False, 16),
    "dinov3_h16plus": (1280, 32, 20, 5120, True, 16),
    "dinov3_7b16": (4096, 40, 32, 8192, True, 16),
}
"""Vision transformers of DINOv3, all with four registers (masks.md 7.3)."""

BEITS = {
    # name: width, depth, heads, blocks whose tokens are used, layer scale, drop path
    "beit_demo": (64, 4, 2, (0, 1, 2, 3), 0.1, 0.0),
    "beit_b16": (768, 12, 12, (3, 5, 7, 11), 0.1, 0.1),
    "beit_l16": (1024, 24, 16, (7, 11, 15, 23), 1e-6, 0.2),
}
"""BEiT; the hidden layer of the MLP is four times the width (method.md section 9.2)."""

SWINS = {
    # name: width, depths, heads, window, drop path
    "swin_demo": (32, (2, 2, 2, 2), (1, 2, 4, 8), 6, 0.0),
    "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "swin_s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.3),
    "swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.3),
    "swin_l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 0.3),
}
"""Sizes of Swin transformers. Windows of 7 belong to weights trained on 224 pixels,
windows of 12 to those trained on 384; B and L exist with both.
"""

RESNETS = {
    # name: width, blocks of each stage, dilated, bottlenecks
    "resnet_demo": (16, (2, 2, 2, 2), True, True),
    "resnet18_half": (32, (2, 2, 2, 2), False, False),
    "resnet18": (64, (2, 2, 2, 2), False, False),
    "resnet34": (64, (3, 4, 6, 3), False, False),
    "resnet50": (64, (3, 4, 6, 3), False, True),
    "resnet101": (64, (3, 4, 23, 3), False, True),
    "resnet50_v1c": (64, (3, 4, 6, 3), True, True),
    "resnet101_v1c": (64, (3, 4, 23, 3), True, True),
}
"""Residual networks: torchvision's of stride 32; V1c of Open-MMLab, whose last two
stages are dilated instead of coarser (stride 8, method.md section 9.2).
"""


TRESNETS = {
    # name: width, blocks of each stage, which stages have bottlenecks
    "tresnet_l": (76, (4, 5, 18, 3), (False, False, True, True)),
    "tresnet_l_v2": (64, (3, 4, 23, 3), (True, True, True, True)),
}
"""TResNet-L, and the one of which there are weights of ImageNet-21k."""


def vit(name: str, image_size: tuple[int, int]) -> ConfigDict:
    embed_dim, depth, num_heads, patch_size = choose(VITS, "backbone", name)
    return ConfigDict(
        {
            "name": "vit",
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": 4 * embed_dim,
            "patch_size": patch_size,
            # Size of picture whose grid the position table has.
            "image_size": image_size,
            # table, patches (a table without the class token's row), rotary (DINOv3).
            "positions": "table",
            # How it is brought to other grids: bicubic, antialiased_bicubic (timm),
            # bilinear (official Segmenter).
            "position_resize": "bicubic",
            # rotary: largest random factor on coordinates in training; 1 is none.
            "position_rescale": 1.0,
            # False: queries and values alone have biases (DINOv3).
            "key_bias": True,
            # 1e-5 in the official Segmenter.
            "norm_epsilon": 1e-6,
            # Blocks (from 0) whose tokens are handed on; () is the last.
            "taps": (),
            # Extra tokens, initial factor of branches (0: none), SwiGLU (DINOv2).
            "num_registers": 0,
            "layer_scale": 0.0,
            "gated": False,
            # The last map as four, of strides 4, 8, 16, 32 (for decoders of regions).
            "pyramid": False,
            "drop_path_rate": 0.1,
            # One scan over stacked layers: compiles faster, and so must `remat`.
            "scan": False,
            # What the backward pass keeps of a block: none (= all of it), dots, full.
            "remat": "none",
        }
    )


def dinov2(name: str) -> ConfigDict:
    """A `vit` with DINOv2's parts and its position table of 37 x 37 cells."""
    start, registers_given, _ = name.partition("_reg")
    names = [*DINOV2S, *(f"{each}_reg" for each in DINOV2S)]
    choose(names, "backbone", name)
    embed_dim, depth, num_heads, mlp_dim, gated = DINOV2S[start]
    config = vit("vit_b16", (518, 518))
    config.update(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        patch_size=14,
        num_registers=4 if registers_given else 0,
        position_resize="antialiased_bicubic" if registers_given else "bicubic",
        layer_scale=1.0,
        gated=gated,
        drop_path_rate=0.0,
    )
    return config


def dinov3(name: str) -> ConfigDict:
    """A `vit` with DINOv3's parts (masks.md 7.3)."""
    sizes = choose(DINOV3S, "backbone", name)
    embed_dim, depth, num_heads, mlp_dim, gated, patch_size = sizes
    # Positions are no table: pictures may have any size.
    config = vit("vit_b16", (patch_size, patch_size))
    config.update(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        patch_size=patch_size,
        positions="rotary",
        key_bias=False,
        norm_epsilon=1e-5,
        num_registers=4,
        layer_scale=1.0,
        gated=gated,
        drop_path_rate=0.0,
    )
    return config


def beit(name: str, image_size: tuple[int, int]) -> ConfigDict:
    sizes = choose(BEITS, "backbone", name)
    embed_dim, depth, num_heads, taps, layer_scale, drop_path_rate = sizes
    return ConfigDict(
        {
            "name": "beit",
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": 4 * embed_dim,
            "patch_size": 16,
            # Size of picture whose grid the tables of relative positions have.
            "image_size": image_size,
            # Blocks (from 0) whose tokens become the four maps.
            "taps": taps,
            # Initial factor of every branch.
            "layer_scale": layer_scale,
            "drop_path_rate": drop_path_rate,
            # As of `vit`.
            "scan": False,
            "remat": "none",
        }
    )


def swin(name: str) -> ConfigDict:
    sizes = choose(SWINS, "backbone", name)
    embed_dim, depths, num_heads, window_size, drop_path_rate = sizes
    return ConfigDict(
        {
            "name": "swin",
            "embed_dim": embed_dim,
            # Blocks and attention heads of each of the four stages.
            "depths": depths,
            "num_heads": num_heads,
            # Tokens along a side of an attention window.
            "window_size": window_size,
            "drop_path_rate": drop_path_rate,
            # How many of the outputs, from the coarsest, have a layer norm.
            "num_norms": 4,
            # Maps not larger than a window: shifted as others (segmentation), or one
            # window, the classifiers' way (method.md section 9.2).
            "shift_small_maps": True,
            # Hidden layer of the MLP in widths.
            "mlp_ratio": 4,
            # As of `vit`; a scan goes over pairs of blocks.
            "scan": False,
            "remat": "none",
        }
    )


def resnet(name: str) -> ConfigDict:
    embed_dim, depths, dilated, bottleneck = choose(RESNETS, "backbone", name)
    return ConfigDict(
        {
            "name": "resnet",
            # Width of the stem's result; the four maps are 4, 8, 16, 32 times as wide,
            # without bottlenecks 1, 2, 4, 8 times.
            "embed_dim": embed_dim,
            # Blocks, stride and dilation of each stage.
            "depths": depths,
            "strides": (1, 2, 1, 1) if dilated else (1, 2, 2, 2),
            "dilations": (1, 1, 2, 4) if dilated else (1, 1, 1, 1),
            # Half the dilation in the first block of a stage.
            "contract_dilation": dilated,
            # 1 x 1, 3 x 3, 1 x 1; or else two of 3 x 3.
            "bottleneck": bottleneck,
            # plain (7 x 7) or deep (three times 3 x 3).
            "stem": "deep" if dilated else "plain",
            # Keep the imported batch statistics in training.
            "freeze_norms": False,
            # As of `vit`; a scan goes over the equal blocks of a stage.
            "scan": False,
            "remat": "none",
        }
    )


def tresnet(name: str) -> ConfigDict:
    embed_dim, depths, bottlenecks = choose(TRESNETS, "backbone", name)
    return ConfigDict(
        {
            "name": "tresnet",
            "embed_dim": embed_dim,
            # Blocks of each of the four stages, and whether they are bottlenecks.
            "depths": depths,
            "bottlenecks": bottlenecks,
            # As of `vit`.
            "remat": "none",
        }
    )
