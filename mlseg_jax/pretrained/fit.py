"""Arrays of another size than the configuration's: what can be made to fit, and how.

Everything else must have its exact shape. What is done is said in a note.
"""

import math
import re

import ml_collections
import numpy as np

from mlseg_jax.models.layers.resize import POSITION_RESIZES, bicubic_matrix

CLASS_ROWS = re.compile(
    r"(multilabel_head/)?class_embeddings|class_biases"
    r"|(multilabel_head/(encoder/)?)?classifier/\w+"
    r"|multilabel_head/class_norm/\w+|auxiliary_head/class_(weights|biases)"
)
"""Our arrays that have an entry for every class (on their first or last axis)."""

PATCHES = re.compile(r"backbone/patch_projection/kernel")
POSITIONS = re.compile(r"backbone/position_table")
RELATIVE = re.compile(r"backbone/.*relative_position_bias_table")
RANKS = re.compile(r"rank_norm/\w+")


class Fitter:
    """Decides and does it, and collects what there is to say."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        num_classes: int,
        shapes: dict[str, tuple[int, ...]],
    ):
        self.config = config
        self.num_classes = num_classes
        self.shapes = shapes
        self.notes = []

    def may_differ(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can become the path's."""
        wanted = self.shapes[path]
        if len(shape) != len(wanted):
            return False
        if POSITIONS.fullmatch(path):
            return shape[1] == wanted[1] and self._positions(shape[0]) is not None
        if PATCHES.fullmatch(path):
            sides = _side(shape[0] // 3), _side(wanted[0] // 3)
            return shape[1] == wanted[1] and None not in sides
        if RELATIVE.fullmatch(path):
            return shape[1] == wanted[1] and _window(shape[0]) is not None
        if self._has_class_rows(path):
            return other_classes(shape, wanted, self.num_classes) is not None
        return RANKS.fullmatch(path) is not None

    def fit(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays in the wanted shapes; without those that must be made anew."""
        counts = {
            other_classes(array.shape, self.shapes[path], self.num_classes)
            for path, array in arrays.items()
            if self._has_class_rows(path) and array.shape != self.shapes[path]
        }
        if counts:
            theirs = " or ".join(map(str, sorted(counts)))
            self.notes.append(
                f"the file is of {theirs} classes and the configuration of "
                f"{self.num_classes}: the rows of classes start anew"
            )
        fitted = {}
        for path, array in arrays.items():
            if counts and self._has_class_rows(path):
                continue
            if array.shape == self.shapes[path]:
                fitted[path] = array
            elif POSITIONS.fullmatch(path):
                fitted[path] = self._resize_positions(array)
            elif PATCHES.fullmatch(path):
                fitted[path] = self._resample_patches(path, array)
            elif RELATIVE.fullmatch(path):
                fitted[path] = self._resize_relative(path, array)
            else:
                fitted[path] = self._fit_ranks(path, array)
        self._move_class_position(arrays, fitted)
        return fitted

    def _has_class_rows(self, path: str) -> bool:
        if RANKS.fullmatch(path):
            # The baseline's is over classes, and that of a selection over ranks.
            is_baseline = self.config.selection.name == "complete"
            return is_baseline and self.config.model.rank_norm.kind == "affine"
        return CLASS_ROWS.fullmatch(path) is not None

    def _positions(self, count: int) -> tuple[int, int] | None:
        """Rows of a square table of patches, and of a class token before them."""
        is_alone = self.config.model.backbone.get("positions", "table") == "patches"
        for before in (0, 1) if is_alone else (1,):
            side = _side(count - before)
            if side is not None:
                return side, before
        return None

    def _resize_positions(self, table: np.ndarray) -> np.ndarray:
        backbone = self.config.model.backbone
        grid = [-(-side // backbone.patch_size) for side in backbone.image_size]
        side, before = self._positions(table.shape[0])
        kind = backbone.position_resize
        rows, columns = (POSITION_RESIZES[kind](n, side) for n in grid)
        old = table[before:].astype(np.float32).reshape(side, side, -1)
        new = np.einsum("Hh,Ww,hwd->HWd", rows, columns, old)
        self.notes.append(
            f"the position table is resized from {side}x{side} to {grid[0]}x{grid[1]} "
            f"({kind})"
        )
        new = new.reshape(-1, table.shape[1])
        is_alone = backbone.get("positions", "table") == "patches"
        first = table[:0] if is_alone else table[:1]
        return np.concatenate([first, new]).astype(np.float32)

    def _move_class_position(self, arrays: dict, fitted: dict) -> None:
        """Where patches alone have positions, the class token keeps its own."""
        table = arrays.get("backbone/position_table")
        if table is None or "backbone/class_token" not in fitted:
            return
        is_alone = self.config.model.backbone.get("positions", "table") == "patches"
        if is_alone and self._positions(table.shape[0])[1]:
            fitted["backbone/class_token"] = fitted["backbone/class_token"] + table[0]

    def _resample_patches(self, path: str, kernel: np.ndarray) -> np.ndarray:
        """Kernels of patches of another size, so that enlarged patches give what those
        of the old size gave (Beyer et al. 2023, "FlexiViT"; as timm does it).
        """
        old, new = _side(kernel.shape[0] // 3), _side(self.shapes[path][0] // 3)
        enlarge = bicubic_matrix(new, old, antialias=True)
        change = np.linalg.pinv(np.asarray(enlarge, np.float64).T)
        kernels = kernel.reshape(old, old, 3, -1)
        made = np.einsum("Yy,Xx,yxcd->YXcd", change, change, kernels)
        self.notes.append(
            f"kernels of patches are resampled from {old} to {new} pixels"
        )
        return made.reshape(-1, kernel.shape[1]).astype(np.float32)

    def _resize_relative(self, path: str, table: np.ndarray) -> np.ndarray:
        """Swin's windows as the release does it, BEiT's grids as its run time."""
        old, rest = _window(table.shape[0])
        new = self._relative_lengths(path)
        kind = "bilinear" if rest else "bicubic"
        rows, columns = (POSITION_RESIZES[kind](n, old) for n in new)
        count = table.shape[0] - rest
        grid = table[:count].astype(np.float32).reshape(old, old, -1)
        resized = np.einsum("Hh,Ww,hwd->HWd", rows, columns, grid)
        self._note_once(f"tables of relative positions are resized ({kind})")
        flat = resized.reshape(-1, table.shape[1])
        return np.concatenate([flat, table[count:]]).astype(np.float32)

    def _relative_lengths(self, path: str) -> tuple[int, int]:
        backbone = self.config.model.backbone
        if "window_size" in backbone:
            return (2 * backbone.window_size - 1,) * 2
        grid = (-(-side // backbone.patch_size) for side in backbone.image_size)
        return tuple(2 * cells - 1 for cells in grid)

    def _note_once(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _fit_ranks(self, path: str, array: np.ndarray) -> np.ndarray:
        """The first ranks, or the last one again (method.md section 16, row 9)."""
        wanted = self.shapes[path][0]
        self.notes.append(f"{path} of {len(array)} ranks is made to fit {wanted}")
        missing = max(0, wanted - len(array))
        return np.pad(array[:wanted], (0, missing), mode="edge")


def other_classes(
    shape: tuple[int, ...], wanted: tuple[int, ...], num_classes: int
) -> int | None:
    """Entries along the class axis, where nothing else differs."""
    for axis in (0, -1):
        rest, rest_wanted = list(shape), list(wanted)
        count = rest.pop(axis)
        if rest_wanted.pop(axis) == num_classes and rest == rest_wanted:
            return count
    return None


def _window(entries: int) -> tuple[int, int] | None:
    """Rows of a square table of relative positions, and the entries after it.

    BEiT has three more, for its class token.
    """
    for rest in (0, 3):
        side = _side(entries - rest)
        if side is not None and side % 2 == 1:
            return side, rest
    return None


def _side(count: int) -> int | None:
    side = math.isqrt(max(count, 0))
    return side if side > 0 and side * side == count else None
