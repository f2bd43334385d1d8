"""Weights that are published under a fixed address, by names of our own.

``config.init`` and ``convert --weights`` take these names beside files; a file that
exists wins over a name. Addresses are those that the authors publish.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """Where weights are, and what they are for.

    Attributes:
      address: of the file.
      licence: as its authors say.
      fits: a recipe whose backbone, or model, they fill.
      note: what is to be known.
      sha256: of the file, or its first digits, where the authors say it.
    """

    address: str
    licence: str
    fits: str
    note: str = ""
    sha256: str = ""


_AUGREG = "https://storage.googleapis.com/vit_models/augreg/"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/"
_TUNED = "--imagenet2012-steps_20k-lr_0.0"
_B16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
_L16 = "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1"
_S16 = "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"
_TI16 = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"


def _augreg(name: str, file: str, backbone: str, note: str) -> tuple[str, Published]:
    fits = f"configs/segmenter.py:backbone={backbone}"
    return name, Published(f"{_AUGREG}{file}.npz", "Apache-2.0", fits, note)


def _dinov2(size: str, backbone: str, registers: bool) -> tuple[str, Published]:
    model = f"dinov2_vit{size}14"
    name, end = (f"{model}_reg", "_reg4") if registers else (model, "")
    fits = f"configs/linear.py:backbone={backbone}{'_reg' if registers else ''}"
    address = f"{_DINOV2}{model}/{model}{end}_pretrain.pth"
    return name, Published(address, "Apache-2.0", fits)


def _swin(name: str, file: str, backbone: str, note: str) -> tuple[str, Published]:
    fits = f"configs/upernet.py:backbone={backbone}"
    return name, Published(f"{_SWIN}{file}.pth", "MIT", fits, note)


_21K, _1K = "ImageNet-21K", "ImageNet-21K, then 1K at 384 pixels"

PUBLISHED = dict(
    [
        _augreg("augreg_ti16", _TI16, "vit_ti16", _21K),
        _augreg("augreg_s16", _S16, "vit_s16", _21K),
        _augreg("augreg_b16", _B16, "vit_b16", _21K),
        _augreg("augreg_l16", _L16, "vit_l16", _21K),
        _augreg("augreg_ti16_384", f"{_TI16}{_TUNED}3-res_384", "vit_ti16", _1K),
        _augreg("augreg_s16_384", f"{_S16}{_TUNED}3-res_384", "vit_s16", _1K),
        _augreg("augreg_b16_384", f"{_B16}{_TUNED}1-res_384", "vit_b16", _1K),
        _augreg("augreg_l16_384", f"{_L16}{_TUNED}1-res_384", "vit_l16", _1K),
        *(
            _dinov2(size, f"dinov2_{size}14", registers)
            for registers in (False, True)
            for size in ("s", "b", "l", "g")
        ),
        _swin("swin_t", "v1.0.0/swin_tiny_patch4_window7_224", "swin_t", "ImageNet-1K"),
        _swin(
            "swin_s", "v1.0.0/swin_small_patch4_window7_224", "swin_s", "ImageNet-1K"
        ),
        _swin("swin_b_22k", "v1.0.0/swin_base_patch4_window12_384_22k", "swin_b", _21K),
        _swin(
            "swin_l_22k", "v1.0.0/swin_large_patch4_window12_384_22k", "swin_l", _21K
        ),
    ]
)
"""By name."""
