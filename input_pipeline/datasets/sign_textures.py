"""Textures of the regions behind the signs of SignScenes."""

import cv2
import numpy as np


def smooth_noise(rng, image_size, cells: int) -> np.ndarray:
    small = rng.random((cells, cells), np.float32)
    return cv2.resize(small, image_size[::-1], interpolation=cv2.INTER_CUBIC)


def _wave(t):
    # A sine of period 1, squeezed: two tones with edges a pixel or two soft.
    return np.clip(0.5 + 1.5 * np.sin(2 * np.pi * t), 0, 1)


# Kind of texture -> tone 0..1 at coordinates whose unit is an eighth of the image.
TEXTURES = {
    "stripes": lambda u, v, rng: _wave(0.8 * (u + v)),
    "dots": lambda u, v, rng: _wave(0.25 + np.hypot(u % 1 - 0.5, v % 1 - 0.5)),
    "bricks": lambda u, v, rng: np.minimum(v % 1, (u + v // 1) / 2 % 1) > 0.14,
    "clouds": lambda u, v, rng: np.clip(smooth_noise(rng, u.shape, 7), 0, 1),
    "checks": lambda u, v, rng: (np.floor(u) + np.floor(v)) % 2,
    "waves": lambda u, v, rng: _wave(0.8 * v + 0.35 * np.sin(2 * u)),
    "speckle": lambda u, v, rng: smooth_noise(rng, u.shape, 32) > 0.6,
    "rings": lambda u, v, rng: _wave(np.hypot(u % 4 - 2, v % 4 - 2)),
    "grid": lambda u, v, rng: (u % 1 < 0.25) | (v % 1 < 0.25),
    "zigzag": lambda u, v, rng: _wave(0.8 * v + 0.9 * np.abs(u % 1.6 - 0.8)),
}
