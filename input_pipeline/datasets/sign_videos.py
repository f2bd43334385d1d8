"""Videos of SignScenes: signs that drift, bounce, hide behind others, come and go.

The scenes and classes are those of `sign_scenes`. Of the signs of a scene some stay and
bounce at the border, some appear in the middle of the video, and some leave: they stop
bouncing and drift out of the picture. What a video shows is a pure function of (seed,
split, index, length).
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline.datasets import sign_scenes
from input_pipeline.datasets.clips import Video

STAYS, APPEARS, LEAVES = range(3)
SHARES = (0.5, 0.25, 0.25)
"""How often a sign stays, appears late, or leaves."""

_KEPT_SCENES = 8
"""Scenes that are kept as drawn: the frames of a video are read side by side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignVideos:
    """Random-access source of procedural videos; see the module docstring.

    Attributes:
      scenes: the still scenes; there is a video of each.
      length: frames of every video.
    """

    scenes: sign_scenes.SignScenes
    length: int = 12

    @property
    def info(self):
        return self.scenes.info

    @functools.cached_property
    def videos(self) -> tuple[Video, ...]:
        split = self.scenes.split
        return tuple(
            Video(f"sign_scenes_{split}_{i:06d}", i * self.length, self.length)
            for i in range(len(self.scenes))
        )

    def read(self, index: int, places: Sequence[int]) -> dict:
        """``image`` uint8 [T H W 3], ``label_map`` and ``instance_map`` int32 [T H W].

        A sign has one number in all frames, from 1; later ones lie on top.
        """
        background, film, regions, signs, fates = _scene(
            self.scenes, self.length, index
        )
        frames = []
        for time in places:
            centers = [
                _center(sign, *fate, int(time), regions.shape)
                for sign, fate in zip(signs, fates, strict=True)
            ]
            frames.append(sign_scenes.render(background, film, regions, signs, centers))
        images, label_maps, instance_maps = map(np.stack, zip(*frames, strict=True))
        return {
            "image": images,
            "label_map": label_maps,
            "instance_map": instance_maps,
        }


@functools.lru_cache(maxsize=_KEPT_SCENES)
def _scene(scenes: sign_scenes.SignScenes, length: int, index: int):
    """A drawn scene, and what becomes of each sign and when."""
    scene = scenes.scene(index)
    rng = np.random.default_rng([*scenes.key(index), length])
    kinds = rng.choice(3, size=len(scene[-1]), p=SHARES).tolist()
    # Not in the first and not in the last frames, so that both sides are seen.
    low, high = length // 4, max(length // 4 + 1, 3 * length // 4)
    times = rng.integers(low, high, size=len(kinds)).tolist()
    return *scene, tuple(zip(kinds, times, strict=True))


def _center(sign, kind: int, moment: int, time: int, size: tuple[int, int]):
    """Where a sign is, (y, x); None where it is not in the picture."""
    if kind == APPEARS and time < moment:
        return None
    if kind != LEAVES or time <= moment:
        return sign_scenes.bounced(sign, time, size)
    # Straight on from where it bounced last, to the nearer side and quickly.
    start = sign_scenes.bounced(sign, moment, size)
    side = -1 if start[1] < (size[1] - 1) / 2 else 1
    speed = max(abs(sign.velocity[1]), 0.15 * size[1])
    center = start + (time - moment) * np.array([sign.velocity[0], side * speed])
    reach = 1.35 * sign.radius + 2
    outside = np.any(center < -reach) or np.any(center > np.array(size) + reach)
    return None if outside else center
