"""The public models that ``live.py`` compares with, each beside ours, in tiny sizes."""

import dataclasses
from collections.abc import Callable

import timm
import torch
import torchvision
import transformers

from mlseg_jax.models.backbones.beit import Beit
from mlseg_jax.models.backbones.resnet import ResNet
from mlseg_jax.models.backbones.swin import Swin
from mlseg_jax.models.backbones.tresnet import TResNet
from mlseg_jax.models.backbones.vit import ViT

WIDTH, HEADS, DEPTH, MLP = 24, 2, 3, 48


@dataclasses.dataclass
class Case:
    """One public model beside ours.

    Attributes:
      title: of the row.
      theirs: the module, whose weights are made random.
      run: their output maps [B, h, w, D] of a batch of pictures [B, 3, H, W].
      ours: makes our backbone from ``sizes``.
      sizes: of our backbone, as its constructor takes them.
      size: height and width of the pictures.
      blocks: (name of a module of theirs, path of ours, what ours is called with).
      pick: which of our maps the output is.
    """

    title: str
    theirs: torch.nn.Module
    run: Callable
    ours: type
    sizes: dict
    size: tuple[int, int] = (37, 50)
    blocks: tuple = ()
    pick: tuple[int, ...] = (-1,)


def vit_sizes(patch: int, side: int, **more) -> dict:
    return dict(
        image_size=(side, side), patch_size=patch, embed_dim=WIDTH, depth=DEPTH,
        num_heads=HEADS, mlp_dim=MLP, **more,
    )  # fmt: skip


def hugging_face(name: str, patch: int, side: int, **more):
    """A model and its configuration class's arguments, in our sizes."""
    sizes = dict(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        image_size=side, patch_size=patch, attn_implementation="eager",
    )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes | more)
    return getattr(transformers, f"{name}Model")(config)


def without_tokens(count: int, grid: tuple[int, int]):
    """Runs a Hugging Face model; its last tokens as a map."""

    def run(model, images, **more):
        out = model(images, **more).last_hidden_state
        return [out[:, count:].unflatten(1, grid)]

    return run


def plain_blocks(prefix: str) -> tuple:
    return tuple((f"{prefix}.{i}", f"blocks/blocks/{i}", None) for i in range(DEPTH))


def timm_vit() -> Case:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=MLP / WIDTH, num_classes=5, dynamic_img_size=True,
    )  # fmt: skip

    def run(model, images):
        tokens = model.forward_features(images)[:, 1:]
        return [tokens.unflatten(1, (images.shape[2] // 4, images.shape[3] // 4))]

    sizes = vit_sizes(4, 32, position_resize="antialiased_bicubic")
    blocks = plain_blocks("blocks")
    return Case("ViT (timm)", model, run, ViT, sizes, (36, 52), blocks)


def hugging_face_vit() -> Case:
    model = hugging_face("ViT", 4, 32, intermediate_size=MLP)
    grid = without_tokens(1, (9, 13))
    run = lambda m, x: grid(m, x, interpolate_pos_encoding=True)  # noqa: E731
    sizes = vit_sizes(4, 32, norm_epsilon=1e-12)
    blocks = plain_blocks("layers")
    return Case("ViT (transformers)", model, run, ViT, sizes, (36, 52), blocks)


def dinov2(title: str, name: str, registers: int, gated: bool) -> Case:
    more = dict(num_register_tokens=registers) if registers else {}
    model = hugging_face(name, 4, 32, mlp_ratio=2, use_swiglu_ffn=gated, **more)
    kind = "antialiased_bicubic" if registers else "bicubic"
    hidden = (int(MLP * 2 / 3) + 7) // 8 * 8 if gated else MLP
    sizes = vit_sizes(4, 32, layer_scale=1.0, num_registers=registers, gated=gated,
                      position_resize=kind) | {"mlp_dim": hidden}  # fmt: skip
    run = without_tokens(1 + registers, (9, 13))
    blocks = plain_blocks("encoder.layer")
    return Case(title, model, run, ViT, sizes, (36, 52), blocks)


def dinov3(title: str, gated: bool) -> Case:
    model = hugging_face(
        "DINOv3ViT", 4, 32, intermediate_size=MLP, num_register_tokens=2,
        use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    # Only pretraining has use for it.
    model.embeddings.register_parameter("mask_token", None)
    sizes = vit_sizes(4, 4, layer_scale=1.0, num_registers=2, gated=gated,
                      positions="rotary", key_bias=False,
                      norm_epsilon=1e-5)  # fmt: skip
    run = without_tokens(3, (9, 13))
    return Case(title, model, run, ViT, sizes, (36, 52))


def beit_case(title: str, size: tuple[int, int], grid: tuple[int, int]) -> Case:
    model = hugging_face(
        "Beit", 4, 32, intermediate_size=MLP, use_relative_position_bias=True,
        use_mask_token=False, use_mean_pooling=True, layer_scale_init_value=0.1,
        drop_path_rate=0.0,
    )  # fmt: skip
    tokens = without_tokens(1, grid)
    run = lambda m, x: tokens(m, x, interpolate_pos_encoding=True)  # noqa: E731
    sizes = vit_sizes(4, 32, taps=(0, 1, 2, 2), layer_scale=0.1)
    sizes["taps"] = (0, 1, DEPTH - 1, DEPTH - 1)
    blocks = tuple((f"layers.{i}", f"blocks/blocks/{i}", grid) for i in range(DEPTH))
    return Case(title, model, run, Beit, sizes, size, blocks, (2,))


def swin_sizes(window: int) -> dict:
    return dict(embed_dim=16, depths=(2, 4), num_heads=(2, 4), window_size=window)


def swin_hugging_face(size: tuple[int, int]) -> Case:
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[2, 4], num_heads=[2, 4],
        window_size=4, drop_path_rate=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.SwinModel(config)
    grid = tuple((n + 7) // 8 for n in size)
    run = without_tokens(0, grid)
    sizes = swin_sizes(4) | {"num_norms": 1}
    title = f"Swin (transformers), {size[0]}x{size[1]}"
    return Case(title, model, run, Swin, sizes, size)


def swin_timm() -> Case:
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=64, patch_size=4, embed_dim=16, depths=(2, 4), num_heads=(2, 4),
        window_size=4, num_classes=5, drop_path_rate=0.0,
    )  # fmt: skip
    run = lambda model, images: [model.forward_features(images)]  # noqa: E731
    return Case("Swin (timm)", model, run, Swin, swin_sizes(4) | {"num_norms": 1},
                (64, 64))  # fmt: skip


def resnet_torchvision() -> Case:
    model = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], num_classes=5
    )

    def run(model, images):
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        maps = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            maps.append(x.permute(0, 2, 3, 1))
        return maps

    sizes = {"depths": (2, 1, 1, 1)}
    return Case("ResNet (torchvision)", model, run, ResNet, sizes, (53, 71),
                pick=(0, 1, 2, 3))  # fmt: skip


def tresnet_timm(v2: bool) -> Case:
    depths = (1, 2, 2, 1)
    model = timm.models.tresnet.TResNet(
        layers=list(depths), num_classes=5, width_factor=0.125, v2=v2
    )

    def run(model, images):
        maps = model.forward_intermediates(
            images, indices=[1, 2, 3, 4], intermediates_only=True
        )
        return [x.permute(0, 2, 3, 1) for x in maps]

    sizes = {"embed_dim": 8, "depths": depths, "bottlenecks": (v2, v2, True, True)}
    title = f"TResNet{' v2' if v2 else ''} (timm), 52x68"
    return Case(title, model, run, TResNet, sizes, (52, 68), pick=(0, 1, 2, 3))


CASES = (
    resnet_torchvision,
    lambda: tresnet_timm(False),
    lambda: tresnet_timm(True),
    timm_vit,
    hugging_face_vit,
    lambda: dinov2("DINOv2 (transformers)", "Dinov2", 0, False),
    lambda: dinov2("DINOv2, gated (transformers)", "Dinov2", 0, True),
    lambda: dinov2("DINOv2, registers (transformers)", "Dinov2WithRegisters", 2, False),
    lambda: dinov3("DINOv3 (transformers)", False),
    lambda: dinov3("DINOv3, gated (transformers)", True),
    lambda: beit_case("BEiT (transformers)", (32, 32), (8, 8)),
    lambda: beit_case("BEiT, another grid (transformers)", (36, 44), (9, 11)),
    lambda: swin_hugging_face((64, 64)),
    lambda: swin_hugging_face((53, 71)),
    swin_timm,
)
