"""The regions behind the signs of SignScenes, and their textures."""

import functools

import cv2
import numpy as np

COLOURS = {
    "red": (208, 44, 48), "orange": (238, 130, 28), "yellow": (244, 208, 52),
    "green": (58, 150, 66), "teal": (32, 160, 160), "blue": (44, 88, 200),
    "purple": (126, 62, 170), "pink": (236, 120, 176), "brown": (120, 78, 44),
    "grey": (112, 116, 124),
}  # fmt: skip


def smooth_noise(rng, image_size, cells: int) -> np.ndarray:
    small = rng.random((cells, cells), np.float32)
    return cv2.resize(small, image_size[::-1], interpolation=cv2.INTER_CUBIC)


def _wave(t):
    # A sine of period 1, squeezed: two tones with edges a pixel or two soft.
    return np.clip(0.5 + 1.5 * np.sin(2 * np.pi * t), 0, 1)


NOISES = {"clouds": 7, "speckle": 32}
"""Textures made of `smooth_noise` and of how many cells of it."""

# Kind of texture -> tone 0..1 at coordinates whose unit is an eighth of the image, or
# where the noise is so much.
TEXTURES = {
    "stripes": lambda u, v, noise: _wave(0.8 * (u + v)),
    "dots": lambda u, v, noise: _wave(0.25 + np.hypot(u % 1 - 0.5, v % 1 - 0.5)),
    "bricks": lambda u, v, noise: np.minimum(v % 1, (u + v // 1) / 2 % 1) > 0.14,
    "clouds": lambda u, v, noise: np.clip(noise, 0, 1),
    "checks": lambda u, v, noise: (np.floor(u) + np.floor(v)) % 2,
    "waves": lambda u, v, noise: _wave(0.8 * v + 0.35 * np.sin(2 * u)),
    "speckle": lambda u, v, noise: noise > 0.6,
    "rings": lambda u, v, noise: _wave(np.hypot(u % 4 - 2, v % 4 - 2)),
    "grid": lambda u, v, noise: (u % 1 < 0.25) | (v % 1 < 0.25),
    "zigzag": lambda u, v, noise: _wave(0.8 * v + 0.9 * np.abs(u % 1.6 - 0.8)),
}

# Neighbours differ in texture and in colour; each of the 100 pairs comes once.
STUFF = [
    (texture, tuple(COLOURS)[(3 * i + shift) % 10])
    for shift in range(10)
    for i, texture in enumerate(TEXTURES)
]


def draw_background(rng, stuff_ids, image_size):
    """Returns float32 [H W 3] and its class ids int32 [H W]: wobbly Voronoi regions."""
    y, x = _coordinates(image_size)
    nearest = np.full(image_size, np.inf, np.float32)
    regions = np.zeros(image_size, np.int32)
    drawn = []
    for class_id in stuff_ids:
        center = rng.random(2, np.float32) * (y[-1, -1], x[-1, -1])
        distance = (y - center[0]) ** 2 + (x - center[1]) ** 2
        distance += 0.5 * smooth_noise(rng, image_size, 4)
        np.copyto(regions, class_id, where=distance < nearest)
        np.minimum(nearest, distance, out=nearest)
        angle, shift = rng.uniform(-0.3, 0.3), rng.uniform(0, 10, 2)
        turn = 8 * rng.uniform(0.85, 1.2) * np.exp(1j * angle)
        texture, colour = STUFF[class_id]
        colour = np.float32(COLOURS[colour]) * rng.uniform(0.92, 1.08)
        cells = NOISES.get(texture)
        noise = None if cells is None else smooth_noise(rng, image_size, cells)
        drawn.append((class_id, texture, colour, turn, shift, noise))
    # Textures only where they are seen: they are most of the work.
    y, x, flat_regions = y.ravel(), x.ravel(), regions.ravel()
    background = np.zeros((*image_size, 3), np.float32)
    for class_id, texture, colour, turn, shift, noise in drawn:
        seen = np.flatnonzero(flat_regions == class_id)
        u = v = None
        if noise is None:
            across, down = x[seen], y[seen]
            u = np.float32(turn.real * across + turn.imag * down + shift[0])
            v = np.float32(turn.real * down - turn.imag * across + shift[1])
        else:
            noise = noise.ravel()[seen]
        tone = np.float32(TEXTURES[texture](u, v, noise))[:, None]
        # Darker and paler than the signs, which keep the pure colour.
        dark, pale = 0.62 * colour + 12, 0.5 * colour + 118
        background.reshape(-1, 3)[seen] = dark + tone * (pale - dark)
    return background, regions


@functools.lru_cache(maxsize=8)
def _coordinates(image_size):
    """y and x float32 [H W], whose unit is the shorter side."""
    return np.indices(image_size, np.float32) / np.float32(min(image_size))
