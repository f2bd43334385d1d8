"""Golden file of Mask2Former on clips, out of the image model of transformers.

Run with a Python that has torch and transformers 5 (neither is a requirement of the
project), after ``make_golden_region_models.py mask2former``, whose weights it takes:

    python tests/parity/make_golden_clips.py

The authors' video modules differ from the image model in three places (masks.md 6.1):
tokens are those of all frames in the order of time, positions have a third axis, and
masks are made in every frame. The library's decoder does that when it is handed the
frames of a clip below each other: with sides that 32 divides, its resizing of masks
mixes no two frames. Positions are written out here in NumPy.
"""

from __future__ import annotations

import pathlib
import types

import numpy as np
import torch
from make_golden import make_image, write
from make_golden_region_models import (
    LEAST,
    FourGroups,
    LayerGroups,
    least_logit,
    mask2former,
    run,
)

WEIGHTS = pathlib.Path(__file__).parent / "golden" / "frameworks" / "mask2former.npz"


def axis(length, channels):
    """Of each place from 1 on: alternately sines and cosines of falling frequency."""
    table = np.zeros((length, channels))
    for place in range(length):
        for channel in range(channels):
            angle = (place + 1) / (length + 1e-6) * 2 * np.pi
            angle /= 10_000 ** (2 * (channel // 2) / channels)
            table[place, channel] = np.cos(angle) if channel % 2 else np.sin(angle)
    return table


def positions(num_frames):
    """Rows and columns side by side, half the channels each, plus all of time."""

    def embed(shape, device, dtype, mask=None):
        batch, channels, tall, width = shape
        height = tall // num_frames
        grid = np.zeros((num_frames, height, width, channels))
        grid[..., : channels // 2] = axis(height, channels // 2)[None, :, None]
        grid[..., channels // 2 :] = axis(width, channels // 2)[None, None]
        grid += axis(num_frames, channels)[:, None, None]
        table = torch.tensor(grid.reshape(tall, width, channels), dtype=dtype)
        return table.permute(2, 0, 1)[None].expand(batch, -1, -1, -1)

    return embed


def below_each_other(maps, num_frames):
    """[B*T C h w] to [B C T*h w]."""
    _, channels, height, width = maps.shape
    maps = maps.reshape(-1, num_frames, channels, height, width)
    return maps.permute(0, 2, 1, 3, 4).reshape(-1, channels, num_frames * height, width)


def use_clips(model, num_frames):
    """The model takes [B*T 3 H W]."""
    core = model.model
    of_frames = core.pixel_level_module

    class OfClips(torch.nn.Module):
        def forward(self, pixel_values, output_hidden_states=False):
            found = of_frames(pixel_values, output_hidden_states=True)
            tall = [
                below_each_other(x, num_frames) for x in found.decoder_hidden_states
            ]
            finest = below_each_other(found.decoder_last_hidden_state, num_frames)
            return types.SimpleNamespace(
                decoder_hidden_states=tall,
                decoder_last_hidden_state=finest,
                encoder_hidden_states=None,
                encoder_last_hidden_state=None,
            )

    class InTime(torch.nn.Module):
        def forward(self, *args):
            return positions(num_frames)(*args)

    core.pixel_level_module = OfClips()
    core.transformer_module.position_embedder = InTime()


def main():
    arrays, outputs = {}, {}
    for num_frames, size in ((2, (32, 64)), (5, (64, 32))):
        torch.nn.GroupNorm = FourGroups
        model = mask2former()
        torch.nn.GroupNorm = LayerGroups
        with np.load(WEIGHTS) as file:
            weights = {
                key.partition(":")[2]: torch.tensor(file[key])
                for key in file.files
                if key.startswith("param:")
            }
        model.load_state_dict(weights, strict=False)
        assert {name for name, _ in model.named_parameters()} == weights.keys()
        model.double().eval()
        use_clips(model, num_frames)
        clip = make_image(np.random.default_rng(num_frames), num_frames, *size)
        assert least_logit(model, clip) > LEAST, "another seed"
        with torch.no_grad():
            classes, masks = run(model, clip)
        arrays[f"clip_{num_frames}"] = clip
        outputs[f"classes_{num_frames}"] = classes
        outputs[f"masks_{num_frames}"] = masks
    write("frameworks/mask2former_clips", {}, arrays, outputs, {}, {})


if __name__ == "__main__":
    main()
