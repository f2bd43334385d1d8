"""Golden files of the backbones and decoders of other toolboxes.

Run with a Python that has torch, timm, transformers, mmsegmentation 1.2 and mmcv-lite 2
(none of them is a requirement of the project):

    python tests/parity/make_golden_frameworks.py [case ...]

The modules are the toolboxes' own, in tiny sizes, with random values as
``golden_files.py`` makes them; files look as its do.
"""

from __future__ import annotations

import sys
import types
import warnings

import numpy as np
import torch
from golden_files import gradients, make_image, normal, write

warnings.filterwarnings("ignore", message="Fail to import")


STATISTICS = ("running_mean", "running_var")


def import_mmseg():
    """mmsegmentation without compiled operators, which none of these modules calls."""
    import mmcv

    class Operators(types.ModuleType):
        __path__ = []

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (torch.nn.Module,), {})

    mmcv.__version__ = "2.1.0"
    for name in ("mmcv.ops", "mmcv.ops.point_sample", "mmcv.ops.carafe"):
        sys.modules[name] = Operators(name)


def randomise(model, rng):
    """Trained-looking values: nothing is left at 0, at 1 or tiny."""
    with torch.no_grad():
        for module in model.modules():
            is_norm = "Norm" in type(module).__name__
            for name, param in module.named_parameters(recurse=False):
                if is_norm and name == "weight":
                    mean, scale = 1.0, 0.25
                elif name.startswith("gamma") or name == "lambda1":
                    mean, scale = 0.5, 0.2
                elif "table" in name or "embed" in name or "token" in name:
                    mean, scale = 0.0, 0.5
                elif param.ndim == 1:
                    mean, scale = 0.0, 0.2
                else:
                    mean, scale = 0.0, param[0].numel() ** -0.5
                param.copy_(normal(rng, *param.shape, scale=scale, mean=mean))
            for name, buffer in module.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.copy_(normal(rng, *buffer.shape, scale=0.3))
                if name == "running_var":
                    buffer.copy_(normal(rng, *buffer.shape, scale=0.3).abs() + 0.5)


def backbone_case(case, model, config, batch, height, width, seed, run=None):
    """Maps of a backbone, and gradients of their products with random maps."""
    rng = np.random.default_rng(seed)
    model.double().eval()
    randomise(model, rng)
    image = make_image(rng, batch, height, width)
    maps = (run or model)(image)
    cotangents = [normal(rng, *each.shape) for each in maps]
    loss = sum((x * y).sum() for x, y in zip(maps, cotangents, strict=True))
    grads = dict(gradients(model, loss))
    numbered = enumerate(cotangents)
    write(
        f"frameworks/{case}",
        dict(config, batch=batch),
        dict(image=image, **{f"cotangent{i}": x for i, x in numbered}),
        dict(loss=loss, **{f"map{i}": x for i, x in enumerate(maps)}),
        [*model.named_parameters(), *statistics(model)],
        grads,
    )


def padded(image, patch=4):
    """As ours and as mmsegmentation's ViT: no row or column is left out."""
    bottom, right = (-side % patch for side in image.shape[2:])
    return torch.nn.functional.pad(image, (0, right, 0, bottom))


def statistics(model):
    """Running averages of batch norms."""
    return [(k, v) for k, v in model.named_buffers() if k.split(".")[-1] in STATISTICS]


# ---------------------------------------------------------------- cases
def swin(case, batch, height, width, window, depths, seed):
    import_mmseg()
    from mmseg.models.backbones.swin import SwinTransformer

    config = dict(embed_dim=8, depths=depths, num_heads=(1, 2), window_size=window)
    model = SwinTransformer(
        embed_dims=8,
        depths=depths,
        num_heads=(1, 2),
        strides=(4, 2),
        out_indices=(0, 1),
        window_size=window,
        mlp_ratio=2,
        drop_path_rate=0.0,
    )
    backbone_case(case, model, config, batch, height, width, seed)


def swin_classifier(case, batch, height, width, window, depths, seed):
    """The transformers library's, whose windows shrink to the shorter side of a map.

    There the bias of a smaller window needs a table of its own, which the original
    makes when it is built for a size of picture; here it is the middle of the large.
    """
    import transformers
    from transformers.models.swin import modeling_swin

    class Bias(modeling_swin.SwinRelativePositionBias):
        def forward(self):
            rest = window - side[0]
            length = 2 * window - 1
            table = self.relative_position_bias_table.reshape(length, length, -1)
            table = table[rest : length - rest, rest : length - rest]
            cells = torch.arange(side[0])
            offset = cells[:, None] - cells[None] + side[0] - 1
            rows = offset[:, None, :, None].expand(-1, side[0], -1, side[0])
            bias = table[rows, rows.transpose(0, 1).transpose(2, 3)]
            return bias.reshape(side[0] ** 2, side[0] ** 2, -1).permute(2, 0, 1)[None]

    side = [window]
    settings = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=list(depths),
        num_heads=[1, 2], window_size=window, mlp_ratio=2.0, drop_path_rate=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.SwinModel(settings, add_pooling_layer=False)

    def watch(layer, args, kwargs):
        grid = args[1] if len(args) > 1 else kwargs["input_dimensions"]
        side[0] = min(window, *grid)

    for layer in model.modules():
        if isinstance(layer, modeling_swin.SwinLayer):
            layer.register_forward_pre_hook(watch, with_kwargs=True)
        if isinstance(layer, modeling_swin.SwinRelativePositionBias):
            layer.__class__ = Bias
    first = []
    last_block = model.encoder.layers[0].blocks[-1]
    last_block.register_forward_hook(lambda layer, args, out: first.append(out[0]))

    def run(image):
        first.clear()
        maps = [None, model(padded(image), interpolate_pos_encoding=True)[0]]
        maps[0] = first[0]
        lengths = [-(-n // 4) for n in image.shape[2:]]
        grids = [lengths, [-(-n // 2) for n in lengths]]
        return [
            x.transpose(1, 2).unflatten(2, grid)
            for x, grid in zip(maps, grids, strict=True)
        ]

    config = dict(embed_dim=8, depths=depths, num_heads=(1, 2), window_size=window)
    backbone_case(case, model, config, batch, height, width, seed, run)


def tresnet(case, batch, height, width, seed):
    """timm's, without its classifier."""
    from timm.models.tresnet import TResNet

    depths = (1, 2, 1, 1)
    model = TResNet(list(depths), num_classes=1, width_factor=4 / 64)
    shown = dict(embed_dim=4, depths=depths, bottlenecks=(0, 0, 1, 1))
    run = lambda image: model.forward_intermediates(  # noqa: E731
        image, indices=[1, 2, 3, 4], intermediates_only=True
    )
    model.head = torch.nn.Identity()
    backbone_case(case, model, shown, batch, height, width, seed, run)


def dinov2(case, batch, height, width, seed, **config):
    """The transformers library's; ``num_register_tokens`` chooses the class."""
    import transformers

    registers = config.get("num_register_tokens", 0)
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = dict(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=24,
        patch_size=4,
        out_features=["stage2", "stage3"],
        attn_implementation="eager",
        **config,
    )
    settings = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}Backbone")(settings)
    model.embeddings.mask_token = None
    shown = dict(
        embed_dim=16,
        depth=3,
        num_heads=2,
        mlp_dim=24 if config.get("use_swiglu_ffn") else 32,
        patch_size=4,
        image_size=(24, 24),
        taps=(1, 2),
        num_registers=registers,
        gated=bool(config.get("use_swiglu_ffn")),
    )
    run = lambda image: model(padded(image)).feature_maps  # noqa: E731
    backbone_case(case, model, shown, batch, height, width, seed, run)


def make_beit(width, *, depth, image_size, taps):
    """The transformers library's, whose maps follow the blocks ``taps`` (from 1)."""
    import transformers

    config = transformers.BeitConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=2 * width,
        image_size=image_size,
        patch_size=4,
        use_relative_position_bias=True,
        use_mask_token=False,
        add_fpn=True,
        out_features=[f"stage{tap}" for tap in taps],
        reshape_hidden_states=True,
        drop_path_rate=0.0,
        attn_implementation="eager",
    )
    return transformers.BeitBackbone(config)


def beit(case, batch, height, width, seed):
    model = make_beit(12, depth=5, image_size=20, taps=(1, 2, 4, 5))
    shown = dict(
        embed_dim=12,
        depth=5,
        num_heads=2,
        mlp_dim=24,
        patch_size=4,
        image_size=(20, 20),
        taps=(0, 1, 3, 4),
    )
    run = lambda image: model(padded(image)).feature_maps  # noqa: E731
    backbone_case(case, model, shown, batch, height, width, seed, run)


def upernet(case, seed):
    """mmsegmentation's head without its classifier, in evaluation and in training."""
    import_mmseg()
    from mmseg.models.decode_heads.uper_head import UPerHead

    rng = np.random.default_rng(seed)
    model = UPerHead(
        in_channels=[4, 6, 8, 10],
        in_index=[0, 1, 2, 3],
        channels=8,
        num_classes=5,
        dropout_ratio=0.0,
        norm_cfg=dict(type="BN"),
        align_corners=False,
    )
    model.double()
    randomise(model, rng)
    grids = [(13, 18), (7, 9), (4, 5), (2, 3)]
    maps = [
        normal(rng, 3, dim, *grid)
        for dim, grid in zip((4, 6, 8, 10), grids, strict=True)
    ]
    params = [*model.named_parameters(), *statistics(model)]
    params = {k: v.detach().clone() for k, v in params if "conv_seg" not in k}
    model.eval()
    evaluated = model._forward_feature(maps)
    model.train()
    trained = model._forward_feature(maps)
    cotangent = normal(rng, *trained.shape)
    loss = (trained * cotangent).sum()
    del model.conv_seg
    write(
        f"frameworks/{case}",
        dict(feature_dims=(4, 6, 8, 10), embed_dim=8),
        dict(cotangent=cotangent, **{f"map{i}": x for i, x in enumerate(maps)}),
        dict(loss=loss, evaluated=evaluated, trained=trained),
        params,
        dict(gradients(model, loss)),
    )


CASES = {
    # Windows padded in every stage, sides that neither 4 nor 2 divides.
    "swin": lambda case: swin(case, 3, 37, 58, 4, (2, 4), 1),
    # One window larger than the last grid.
    "swin_small": lambda case: swin(case, 1, 20, 35, 6, (2, 2), 2),
    # Larger than the window, then a shorter side of its size.
    "swin_classifier": lambda case: swin_classifier(case, 3, 37, 58, 5, (2, 4), 8),
    # A shorter side of its size, then smaller.
    "swin_classifier_small": lambda case: swin_classifier(
        case, 1, 20, 27, 5, (2, 2), 9
    ),
    "tresnet": lambda case: tresnet(case, 2, 36, 52, 7),
    # The position table grows and shrinks; sides that the patch does not divide.
    "dinov2": lambda case: dinov2(case, 3, 27, 18, 3),
    "dinov2_giant": lambda case: dinov2(
        case, 1, 15, 31, 4, num_register_tokens=3, use_swiglu_ffn=True
    ),
    # The grid of the tables, and another.
    "beit": lambda case: beit(case, 3, 20, 20, 5),
    "beit_resized": lambda case: beit(case, 1, 15, 26, 6),
    "upernet": lambda case: upernet(case, 7),
}

if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        CASES[case](case)
