"""Measures how far we are from the public PyTorch implementations: ``make parity``.

Tiny models with random weights, pictures of odd sizes, position tables that must be
resized. Weights go through the tables that ``convert`` uses. Prints a row a model: the
largest difference of a block fed with PyTorch's own input, of the outputs, and of the
gradients (of the sum of outputs times random numbers, by every weight), each relative
to the largest value there. Ends with status 1 where a limit is passed.
"""

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import torchvision
import transformers
from flax import nnx
from ml_collections import ConfigDict

from mlseg_jax.models.backbones.beit import Beit
from mlseg_jax.models.backbones.resnet import ResNet
from mlseg_jax.models.backbones.swin import Swin
from mlseg_jax.models.backbones.tresnet import TResNet
from mlseg_jax.models.backbones.vit import ViT
from mlseg_jax.models.build import flat_parameters
from mlseg_jax.pretrained.fit import Fitter
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.mapping import to_ours
from mlseg_jax.pretrained.read import WeightFile

BLOCK_LIMIT, WHOLE_LIMIT = 1e-5, 1e-4
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


def randomise(model: torch.nn.Module) -> None:
    """Trained-looking values: nothing is left at 0, at 1 or tiny."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, param in model.named_parameters():
            noise = torch.randn_like(param)
            if "norm" in name and name.endswith("weight"):
                noise = 1.0 + 0.25 * noise
            elif "table" in name or "embed" in name and "proj" not in name:
                noise = 0.5 * noise
            elif param.ndim == 1:
                noise = 0.2 * noise
            else:
                noise = noise * param[0].numel() ** -0.5
            param.copy_(noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))


class Functional:
    """Our backbone apart from its numbers, filled by the tables."""

    def __init__(self, case: Case):
        make = lambda: case.ours(**case.sizes, rngs=nnx.Rngs(0))  # noqa: E731
        self.graph, self.abstract = nnx.split(nnx.eval_shape(make))
        found = flat_parameters(self.abstract)
        self.shapes = {f"backbone/{path}": x.shape for path, x in found.items()}
        backbone = {"num_norms": 4} | case.sizes
        self.config = ConfigDict({"model": {"backbone": backbone}})

    def take(self, state: dict[str, torch.Tensor], shapes=None):
        """Their arrays as ours; what no table makes starts as identity."""
        shapes = self.shapes if shapes is None else shapes
        arrays = {name: x.detach().numpy() for name, x in state.items()}
        _, source, arrays = recognise(WeightFile("random", "", arrays))
        fitter = Fitter(self.config, 1, self.shapes)
        mapped = to_ours(
            arrays, source.rows(self.config), shapes, part="backbone/",
            dropped=source.dropped, optional=source.optional,
            may_differ=fitter.may_differ,
        )  # fmt: skip
        taken = fitter.fit(mapped.arrays)
        missing = {
            path: (np.ones if path.endswith("scale") else np.zeros)(shape, np.float32)
            for path, shape in shapes.items()
            if path not in taken
        }
        return {k: jnp.asarray(np.array(x)) for k, x in (taken | missing).items()}

    def bind(self, params):
        state = [
            (path, variable.replace(params["backbone/" + "/".join(map(str, path))]))
            for path, variable in nnx.to_flat_state(self.abstract)
        ]
        return nnx.merge(self.graph, nnx.from_flat_state(state))


def difference(ours, theirs) -> float:
    """Largest, relative to the largest of theirs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs)) / (np.max(np.abs(theirs)) + 1e-9))


def compare(case: Case) -> tuple[float, float, float]:
    model = case.theirs.float().eval()
    randomise(model)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 3, *case.size)).astype(np.float32)
    seen, hooks = {}, []
    for name, *_ in case.blocks:
        module = model.get_submodule(name)
        hooks.append(
            module.register_forward_hook(
                lambda module, args, out, name=name: seen.update({name: (args, out)})
            )
        )
    maps = case.run(model, torch.from_numpy(images))
    cotangents = [rng.standard_normal(x.shape).astype(np.float32) for x in maps]
    pairs = list(zip(maps, cotangents, strict=True))
    sum((x * torch.from_numpy(c)).sum() for x, c in pairs).backward()

    functional = Functional(case)
    params = functional.take(model.state_dict())

    def loss(params):
        features = functional.bind(params)(np.moveaxis(images, 1, -1), None, None)
        grids = [features[i].grid for i in case.pick]
        terms = zip(grids, cotangents, strict=True)
        return sum(jnp.sum(x * c) for x, c in terms), grids

    (_, grids), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs = [x.detach().numpy() for x in maps]
    whole = max(difference(x, y) for x, y in zip(grids, theirs, strict=True))
    whole_grad = gradient_difference(functional, model, grads)

    backbone, block = functional.bind(params), 0.0
    for name, path, context in case.blocks:
        args, out = seen[name]
        ours = backbone
        for part in path.split("/"):
            ours = ours[int(part)] if part.isdigit() else getattr(ours, part)
        x, y = (_tokens(value) for value in (args[0], out))
        made = ours(x) if context is None else ours(x, context)
        block = max(block, difference(made, y))
    return block, whole, whole_grad


def _tokens(x) -> np.ndarray:
    x = x[0] if isinstance(x, tuple) else x
    return x.detach().numpy()


def gradient_difference(functional, model, grads) -> float:
    state = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    state |= {name: torch.zeros_like(b) for name, b in model.named_buffers()}
    theirs = functional.take(state)
    # Where the table is resized on loading, ours is of the resized one.
    given = [path for path in grads if np.any(theirs[path]) and np.any(grads[path])]
    assert len(given) > len(grads) // 2
    return max(difference(grads[path], theirs[path]) for path in given)


# ------------------------------------------------------------------------------ models


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
    lambda: beit_case("BEiT (transformers)", (32, 32), (8, 8)),
    lambda: beit_case("BEiT, another grid (transformers)", (36, 44), (9, 11)),
    lambda: swin_hugging_face((64, 64)),
    lambda: swin_hugging_face((53, 71)),
    swin_timm,
)


def main() -> int:
    packages = ("torch", "torchvision", "timm", "transformers", "jax")
    print(", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages))
    print("\n| model | block | whole | gradient |\n|---|---|---|---|")
    failed = 0
    for make in CASES:
        case = make()
        if not all(word in case.title for word in sys.argv[1:]):
            continue
        block, whole, gradient = compare(case)
        shown = f"{block:.1e}" if case.blocks else "-"
        good = block <= BLOCK_LIMIT and whole <= WHOLE_LIMIT and gradient <= WHOLE_LIMIT
        failed += not good
        mark = "" if good else " **too far**"
        print(f"| {case.title} | {shown} | {whole:.1e} | {gradient:.1e} |{mark}")
        sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
