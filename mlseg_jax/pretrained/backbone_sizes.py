"""Which row of `settings.backbones` a weight file has the size of."""

import math
import re

from mlseg_jax.pretrained.format import Arrays
from mlseg_jax.settings import backbones


def count(arrays: Arrays, pattern: str) -> int:
    """How many numbers stand for the group of ``pattern`` at the start of a name."""
    matches = [re.match(pattern, name) for name in arrays]
    return len({match[1] for match in matches if match})


def width(arrays: Arrays) -> int:
    names = (name for name in arrays if re.fullmatch(r".*patch_embed.*weight", name))
    return next((len(arrays[name]) for name in names if arrays[name].ndim == 4), 0)


def dinov2(arrays: Arrays) -> str | None:
    size = width(arrays), count(arrays, r"(?:blocks|layers)\.(\d+)\.")
    for name, row in backbones.DINOV2S.items():
        if row[:2] == size:
            has_registers = any(n.endswith("register_tokens") for n in arrays)
            return f"{name}_reg" if has_registers else name
    return None


def dinov3(arrays: Arrays) -> str | None:
    """The row of ``backbones.DINOV3S`` with this width, depth and kind of MLP."""
    size = width(arrays), count(arrays, r"(?:blocks|layers)\.(\d+)\.")
    is_gated = any(re.search(r"\.mlp\.(w3|gate_proj)\.", name) for name in arrays)
    for name, row in backbones.DINOV3S.items():
        if (row[:2], row[4]) == (size, is_gated):
            return name
    return None


def beit(arrays: Arrays) -> str | None:
    size = width(arrays), count(arrays, r"(?:(?:backbone\.)?blocks|layers)\.(\d+)\.")
    rows = backbones.BEITS.items()
    return next((name for name, row in rows if row[:2] == size), None)


SWIN_TABLE = re.compile(r".*relative_position_bias_table")


def swin(arrays: Arrays) -> tuple[str | None, str]:
    """The row of ``backbones.SWINS``, and its override for windows of another size."""
    start = r"(?:(?:backbone\.0\.|encoder\.)?layers|backbone\.stages)\."
    depths = tuple(
        count(arrays, rf"{start}{stage}\.blocks\.(\d+)\.") for stage in range(4)
    )
    table = next(x for n, x in arrays.items() if SWIN_TABLE.fullmatch(n))
    window = (math.isqrt(len(table)) + 1) // 2
    for name, (embed_dim, row_depths, _, row_window, _) in backbones.SWINS.items():
        if (embed_dim, row_depths) == (width(arrays), depths):
            other = window != row_window
            flag = f" --config.model.backbone.window_size={window}" if other else ""
            return name, flag
    return None, ""


def resnet(arrays: Arrays, start: str = "") -> str | None:
    depths = tuple(
        count(arrays, rf"{re.escape(start)}layer{stage}\.(\d+)\.")
        for stage in (1, 2, 3, 4)
    )
    block = f"{start}layer1.0"
    if f"{block}.conv1.weight" not in arrays:
        return None
    size = (
        len(arrays[f"{block}.conv1.weight"]),
        depths,
        f"{start}stem.3.weight" in arrays,
        f"{block}.conv3.weight" in arrays,
    )
    for name, row in backbones.RESNETS.items():
        if row == size:
            return name
    return None


def tresnet(arrays: Arrays, start: str = "") -> str | None:
    start = f"{start}body."
    depths = tuple(
        count(arrays, rf"{re.escape(start)}layer{stage}\.(\d+)\.")
        for stage in (1, 2, 3, 4)
    )
    width = len(arrays[f"{start}conv1.conv.weight"])
    for name, (embed_dim, row_depths, _) in backbones.TRESNETS.items():
        if (embed_dim, row_depths) == (width, depths):
            return name
    return None
