"""SignScenes, the embedded data set: procedural scenes with 20 to 1,284 classes.

Textured regions ("stuff") lie behind overlapping signs ("things"). The class of a sign
is the glyph it bears: finding its mask is easy, naming it needs reading, and hue and
shape are strong hints that are sometimes wrong. Classes are long-tailed and come in
topics, so labels co-occur as in photographs. Needs no files and no network: the glyphs
are those of DejaVu Sans Bold, which ships inside matplotlib.

What the classes are depends on ``num_classes`` alone; what a scene shows is a pure
function of (seed, split, index), whatever the process, thread or order of access.
"""

import dataclasses
import functools
import unicodedata
from collections import namedtuple

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from input_pipeline.datasets.sign_textures import COLOURS, STUFF, draw_background
from input_pipeline.info import DataError, DatasetInfo

SPLITS = ("train", "val", "test")
_HINT_RATE = 0.85  # How often a sign has its class's hue, and its class's shape.
_GLYPH_SIZE = 48
_MIN_GLYPH_DISTANCE = 0.15  # Mean absolute difference of two 12x12 thumbnails.
_MIN_VISIBLE = 0.7  # Share of a sign that later signs leave uncovered.
_TWIN_DISTANCE = 0.8  # Of their centres, in sums of radii: any two shapes overlap.
# Circle, square, diamond: distance to the edge, negative inside, and half side of the
# glyph, in radii that make the areas alike.
_SHAPES = (
    (lambda u, v: np.sqrt(u * u + v * v) - 1, 0.64),
    (lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.9, 0.66),
    (lambda u, v: (np.abs(u) + np.abs(v) - 1.22) * 0.7071, 0.58),
)
# Scripts that most people tell apart at a glance come first; the rest by code point.
_FIRST_CODE_POINTS = (
    (0x41, 0x5A), (0x30, 0x39), (0x61, 0x7A), (0x391, 0x3C9), (0x410, 0x44F),
    (0x2600, 0x26FF), (0x2190, 0x21FF), (0x2701, 0x27BF), (0x25A0, 0x25FF),
    (0x20A0, 0x20BF), (0x21, 0x7E), (0x2200, 0x22FF),
)  # fmt: skip

# Stuff has ids 0..S-1, things S..C-1; glyphs uint8 [C-S G G], looks int [C-S 2] (index
# of the hue, of the shape), frequencies [C], topics: (stuff ids, thing ids) of each.
_Classes = namedtuple("_Classes", "info num_stuff glyphs looks frequencies topics")
# Lengths in pixels, (y, x), pixel centres at whole numbers; velocity a frame.
_Sign = namedtuple("_Sign", "class_id glyph shape colour radius angle center velocity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignScenes:
    """Random-access source of procedural scenes; see the module docstring.

    Attributes:
      num_classes: C, from 20 to 1,284; about 20 % (5 to 100) of them are stuff.
      image_size: (H, W) in pixels, at least 32 each; one number means a square.
      split: ``"train"``, ``"val"`` or ``"test"``: different scenes of the same classes.
      num_examples: length of the split.
      seed: non-negative; another seed gives other scenes of the same classes.
      touching: share of the signs, 0 to 1, that are to get a twin: another of their
        class, which touches them; some find no place. Such neighbours are one connected
        component of the label map.

    Raises:
      DataError: an argument is outside its range.
    """

    num_classes: int = 40
    image_size: int | tuple[int, int] = 96
    split: str = "train"
    num_examples: int = 2000
    seed: int = 0
    touching: float = 0.0

    def __post_init__(self):
        size = self.image_size
        size = tuple(size) if np.ndim(size) else (size, size)
        object.__setattr__(self, "image_size", size)
        is_size = len(size) == 2 and min(size) >= 32
        for name, is_valid, wanted in (
            ("num_classes", 20 <= self.num_classes <= 1284, "20 to 1284"),
            ("image_size", is_size, "a side or (H, W) of at least 32 pixels"),
            ("split", self.split in SPLITS, ", ".join(map(repr, SPLITS))),
            ("num_examples", self.num_examples >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("touching", 0 <= self.touching <= 1, "a share from 0 to 1"),
        ):
            if not is_valid:
                value = getattr(self, name)
                raise DataError(f"SignScenes got {name}={value!r}; use {wanted}.")
        _make_classes(self.num_classes)  # Now, rather than in the first batch.

    @property
    def info(self) -> DatasetInfo:
        return _make_classes(self.num_classes).info

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict:
        """Returns frame 0 of the clip without the axis T; raises IndexError."""
        example = self.clip(index, 1)
        return {k: v if k == "name" else v[0] for k, v in example.items()}

    def clip(self, index: int, num_frames: int) -> dict:
        """Returns a video of scene ``index``: its signs drift and bounce at the border.

        A shorter clip is the beginning of a longer one. Signs may hide for a while.

        Returns:
          ``image`` uint8 [T H W 3], ``label_map`` int32 [T H W] (nothing ignored; 3 to
          10 classes in frame 0), ``instance_map`` int32 [T H W] (0 for stuff; 1.. for
          signs, the same in all frames, later ones on top), ``name`` str.

        Raises:
          IndexError: ``index`` is outside 0..len-1.
          DataError: ``num_frames`` is below 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"SignScenes got index {index}; use 0..{len(self) - 1}.")
        if num_frames < 1:
            raise DataError(f"SignScenes.clip got num_frames={num_frames}; use 1 up.")
        scene = self.scene(index)
        paths = (
            [bounced(s, t, self.image_size) for s in scene[-1]]
            for t in range(num_frames)
        )
        frames = [render(*scene, centers) for centers in paths]
        images, label_maps, instance_maps = map(np.stack, zip(*frames, strict=True))
        name = f"sign_scenes_{self.split}_{index:06d}"
        clip = {"image": images, "label_map": label_maps, "name": name}
        return clip | {"instance_map": instance_maps}

    def scene(self, index: int) -> tuple:
        """What `render` paints, see `draw_scene`."""
        key = self.key(index)
        return draw_scene(self.num_classes, self.image_size, key, self.touching)

    def key(self, index: int) -> tuple[int, int, int]:
        """What a scene is drawn from."""
        return self.seed, SPLITS.index(self.split), index


@functools.cache
def _make_classes(num_classes: int) -> _Classes:
    num_stuff = min(max(round(num_classes / 5), 5), len(STUFF))
    num_things = num_classes - num_stuff
    names = [f"{colour} {texture}" for texture, colour in STUFF[:num_stuff]]
    characters, glyphs = _render_glyphs(num_things)
    for c in characters:
        is_plain = c.isascii() and c.isalnum()
        names.append(f"sign {c if is_plain else unicodedata.name(c, hex(ord(c)))}")
    rng = np.random.default_rng([20240607, num_classes])
    # Zipf over a random order, for stuff and things apart: each scene draws from both.
    order = [rng.permutation(n) for n in (num_stuff, num_things)]
    ranks = np.concatenate([np.argsort(x) for x in order])
    frequencies = (1.0 + ranks) ** -0.6
    topics, num_topics = [], max(2, round(num_things / 8))
    for topic in range(num_topics):
        # Its own share of the classes, then frequent ones that other topics have too.
        own = num_stuff + order[1][topic::num_topics]
        others = np.setdiff1d(num_stuff + order[1], own)
        shared = _draw(rng, others, frequencies, max(11 - len(own), 0))
        stuff_ids = np.take(order[0], 4 * topic + np.arange(4), mode="wrap")
        topics.append((stuff_ids, np.concatenate([own, shared])))
    is_thing = (False,) * num_stuff + (True,) * num_things
    info = DatasetInfo("sign_scenes", tuple(names), is_thing)
    looks = np.stack([rng.permutation(num_things) % n for n in (10, 3)], axis=1)
    return _Classes(info, num_stuff, glyphs, looks, frequencies, topics)


def _draw(rng, class_ids, frequencies, count: int) -> np.ndarray:
    """Draws class ids without replacement (Efraimidis and Spirakis, 2006)."""
    keys = np.log1p(-rng.random(len(class_ids))) / frequencies[class_ids]
    return class_ids[np.argsort(-keys)[:count]]


def _render_glyphs(num_glyphs: int) -> tuple[list[str], np.ndarray]:
    """Finds characters that look different; renders them as uint8 [num_glyphs G G]."""
    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf"
    # The basic engine needs no optional library and gives the same glyph everywhere.
    font = ImageFont.truetype(path, _GLYPH_SIZE, layout_engine=ImageFont.Layout.BASIC)
    available = dict.fromkeys(sorted(FT2Font(path).get_charmap()))
    first = (c for a, b in _FIRST_CODE_POINTS for c in range(a, b + 1))
    candidates = dict.fromkeys(c for c in first if c in available) | available
    characters, glyphs = [], []
    thumbnails = np.empty((num_glyphs, 12 * 12), np.float32)
    for character in map(chr, candidates):
        # Letters, numbers, punctuation, symbols: no spaces or marks on a letter.
        if unicodedata.category(character)[0] not in "LNPS":
            continue
        mask = font.getmask(character, "L")
        ink = np.array(mask, np.uint8).reshape(mask.size[::-1])
        if not (ink > 64).any():
            continue
        x, y, w, h = cv2.boundingRect((ink > 64).astype(np.uint8))
        top, left = max(w - h, 0) // 2, max(h - w, 0) // 2
        glyph = np.zeros((max(h, w), max(h, w)), np.uint8)
        glyph[top : top + h, left : left + w] = ink[y : y + h, x : x + w]
        thumbnail = cv2.resize(glyph, (12, 12), interpolation=cv2.INTER_AREA)
        thumbnail = np.float32(thumbnail.ravel() / 255)
        distances = np.abs(thumbnails[: len(glyphs)] - thumbnail).mean(axis=1)
        if distances.min(initial=1) > _MIN_GLYPH_DISTANCE:
            thumbnails[len(glyphs)] = thumbnail
            characters.append(character)
            glyphs.append(cv2.resize(glyph, (_GLYPH_SIZE, _GLYPH_SIZE)))
        if len(glyphs) == num_glyphs:
            return characters, np.stack(glyphs)
    raise DataError(f"{path} lacks {num_glyphs} distinct glyphs; lower num_classes.")


def draw_scene(num_classes: int, image_size: tuple[int, int], key, touching: float):
    """Draws background [H W 3], light and grain [H W 1], stuff ids [H W], signs."""
    classes, rng = _make_classes(num_classes), np.random.default_rng(key)
    while True:  # A draw rarely fails, where signs hide a region.
        stuff_ids, thing_ids = classes.topics[rng.integers(len(classes.topics))]
        num_stuff, num_signs = rng.integers(1, 4), rng.integers(2, 8)
        stuff_ids = _draw(rng, stuff_ids, classes.frequencies, num_stuff)
        thing_ids = _draw(rng, thing_ids, classes.frequencies, num_signs)
        # Sometimes two signs of one class, so that instances are more than classes.
        thing_ids[2:][rng.random(num_signs - 2) < 0.12] = thing_ids[0]
        copies = np.ones(num_signs, int)
        if touching:  # Else not a random number more: scenes stay what they were.
            copies += rng.random(num_signs) < touching
        which = np.repeat(np.arange(num_signs), copies)
        is_twin = np.diff(which, prepend=-1) == 0
        thing_ids = thing_ids[which]
        signs, is_free = _place_signs(rng, classes, thing_ids, is_twin, image_size)
        background, regions = draw_background(rng, stuff_ids, image_size)
        pixels = np.bincount(regions[is_free], minlength=classes.num_stuff)[stuff_ids]
        is_seen = pixels.min() >= 0.01 * regions.size
        if is_seen and len({sign.class_id for sign in signs}) >= 2:
            break
    film = 6 * rng.standard_normal((*image_size, 1), np.float32)
    for slope in _slopes(image_size):
        film += slope * rng.uniform(-22, 22)
    return background, film, regions, signs


@functools.lru_cache(maxsize=8)
def _slopes(image_size):
    """-1 to 1 down and across, [H 1 1] and [W 1]."""
    down, across = (np.linspace(-1, 1, length)[:, None] for length in image_size)
    return down[:, None], across


def _place_signs(rng, classes, thing_ids, is_twin, image_size):
    """Returns signs, each at least _MIN_VISIBLE uncovered, and where none is [H W].

    ``is_twin`` [num_signs]: those that touch the one before them, if that was placed.
    """
    instance_map = np.zeros(image_size, np.int32)
    side = min(image_size)
    signs, slack = [], np.array([np.inf])  # Pixels of each that may yet be covered.
    for class_id, is_beside in zip(thing_ids, is_twin, strict=True):
        thing = class_id - classes.num_stuff
        typical, other = classes.looks[thing], rng.integers((10, 3))
        hue, shape = np.where(rng.random(2) < _HINT_RATE, typical, other)
        colour = list(COLOURS.values())[hue] * rng.uniform(0.88, 1.06, 3)
        radius, angle = side * rng.uniform(0.12, 0.21), rng.uniform(-0.15, 0.15)
        look = classes.glyphs[thing], shape, colour, radius, angle
        heading, speed = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.01, 0.035)
        velocity = speed * np.array([np.sin(heading), np.cos(heading)])
        low, room = 0.8 * radius, np.array(image_size) - 1 - 1.6 * radius
        centers = low + room * rng.random((8, 2))
        if is_beside:
            if not signs or signs[-1].class_id != class_id:
                continue
            way = 2 * np.pi * rng.random((8, 1))
            reach = _TWIN_DISTANCE * (signs[-1].radius + radius)
            centers = signs[-1].center + reach * np.hstack([np.sin(way), np.cos(way)])
            centers = np.clip(centers, low, low + room)
        for center in centers:
            sign = _Sign(class_id, *look, center, velocity)
            box, _, _, distance = _measure(sign, center, image_size)
            inside = distance < 0
            covered = np.bincount(instance_map[box][inside], minlength=len(slack))
            if np.all(covered <= slack):
                signs.append(sign)
                allowed = (1 - _MIN_VISIBLE) * np.count_nonzero(inside)
                slack = np.append(slack - covered, allowed)
                instance_map[box][inside] = len(signs)
                break
    return signs, instance_map == 0


def _measure(sign: _Sign, center, image_size):
    """Returns the sign's box, coordinates along its axes and distance to its edge."""
    reach = 1.35 * sign.radius + 2
    middle = center.tolist()
    top, left = (max(int(c - reach), 0) for c in middle)
    bottom, right = (
        min(max(int(c + reach + 1), 0), side)
        for c, side in zip(middle, image_size, strict=True)
    )
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(center[0])
    x = np.arange(left, right, dtype=np.float32) - np.float32(center[1])
    cos, sin = np.float32(np.cos(sign.angle)), np.float32(np.sin(sign.angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    distance = _SHAPES[sign.shape][0](u / sign.radius, v / sign.radius) * sign.radius
    return (slice(top, bottom), slice(left, right)), u, v, distance


def bounced(sign: _Sign, time: int, image_size) -> np.ndarray:
    """Where a sign is that drifts straight and bounces at the border, (y, x)."""
    margin = 0.8 * sign.radius
    room = np.array(image_size) - 1 - 2 * margin
    way = (sign.center + time * sign.velocity - margin) % (2 * room)
    return margin + np.minimum(way, 2 * room - way)  # A triangle wave.


def render(background, film, regions, signs, centers):
    """Paints signs where they are (None: nowhere); image, label and instance map."""
    image, label_map = background.copy(), regions.copy()
    instance_map = np.zeros_like(label_map)
    for instance_id, (sign, center) in enumerate(zip(signs, centers, strict=True), 1):
        if center is None:
            continue
        box, u, v, distance = _measure(sign, center, label_map.shape)
        side = 2 * _SHAPES[sign.shape][1] * sign.radius
        glyph, pixels = sign.glyph, max(round(side), 4)
        if pixels < _GLYPH_SIZE:  # Average: sampling alone would skip thin strokes.
            glyph = cv2.resize(glyph, (pixels, pixels), interpolation=cv2.INTER_AREA)
        scale, middle = len(glyph) / side, (len(glyph) - 1) / 2
        ink = cv2.remap(glyph, u * scale + middle, v * scale + middle, cv2.INTER_LINEAR)
        rim = np.clip(distance + max(0.09 * sign.radius, 1.2) + 0.5, 0, 1)
        ink = np.maximum(ink / np.float32(255), rim)[..., None]
        ink_colour = 246 if sign.colour @ (0.3, 0.59, 0.11) < 165 else 28
        paint = sign.colour + ink * (ink_colour - sign.colour)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        under, inside = image[box], distance < 0
        under += cover * (paint - under)
        np.copyto(label_map[box], sign.class_id, where=inside)
        np.copyto(instance_map[box], instance_id, where=inside)
    return np.uint8(np.clip(image + film, 0, 255)), label_map, instance_map
