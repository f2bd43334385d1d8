"""How many classes images have, and what K covers them (Figure 2 of the paper)."""

import dataclasses
import pathlib

import ml_collections
import numpy as np
from etils import epath

from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DatasetInfo
from input_pipeline.preparation.class_statistics import Presence
from mlseg_jax.models.build import check_config
from mlseg_jax.training.long_tail import count_presence
from mlseg_jax.typing import Float

SHARES = (0.99, 0.999)
"""Shares of pixels and of images for which the least K is said."""


def image_curve(presence: Presence) -> Float[np.ndarray, "n"]:
    """Entry K: share of images with at most K classes (Figure 2)."""
    counts = np.bincount(np.diff(presence.offsets), minlength=1)
    return np.cumsum(counts) / max(counts.sum(), 1)


def pixel_curve(presence: Presence) -> Float[np.ndarray, "n"]:
    """Entry K: share of labelled pixels in the K largest classes of their image."""
    lengths = np.diff(presence.offsets)
    image = np.repeat(np.arange(len(lengths)), lengths)
    pixels = presence.pixels.astype(np.int64)
    # Within an image, largest first; the place in this order is the class's rank.
    order = np.lexsort((-pixels, image))
    rank = np.arange(len(order)) - np.repeat(presence.offsets[:-1], lengths)
    by_rank = np.zeros(int(lengths.max(initial=0)) + 1)
    np.add.at(by_rank, rank + 1, pixels[order])
    return np.cumsum(by_rank) / max(by_rank.sum(), 1.0)


def least_k(curve: Float[np.ndarray, "n"], share: float) -> int:
    """The least K whose entry reaches a share."""
    return int(np.argmax(curve >= share - 1e-12))


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """Which classes the examples of a split hold.

    Attributes:
      split: its name.
      info: the classes.
      presence: the classes of each example.
    """

    split: str
    info: DatasetInfo
    presence: Presence

    def as_json(self) -> dict:
        """Numbers, curves and class frequencies."""
        by_image, by_pixel = image_curve(self.presence), pixel_curve(self.presence)
        counts = self.presence.statistics(self.info.num_classes)
        lengths = np.diff(self.presence.offsets)
        least = {
            f"k_of_{share:g}_{what}": least_k(curve, share)
            for what, curve in (("images", by_image), ("pixels", by_pixel))
            for share in SHARES
        }
        return {
            "split": self.split,
            "num_classes": self.info.num_classes,
            "num_examples": len(lengths),
            "mean_classes_per_image": float(lengths.mean()) if len(lengths) else 0.0,
            "max_classes_per_image": int(lengths.max(initial=0)),
            **least,
            "images_by_k": by_image.tolist(),
            "pixels_by_k": by_pixel.tolist(),
            "class_pixels": counts["class_pixels"],
            "class_examples": counts["class_examples"],
        }


def measure(config: ml_collections.ConfigDict) -> list[SplitStatistics]:
    """The statistics of both splits: prepared ones, or counted now."""
    check_config(config)
    found = []
    for train in (True, False):
        source = open_dataset(config.data, train=train)
        presence = getattr(source, "presence", None)
        if presence is None:
            presence = count_presence(source, config.data.num_threads)
        split = config.data.train_split if train else config.data.eval_split
        found.append(SplitStatistics(split, source.info, presence))
    return found


def as_text(found: list[SplitStatistics]) -> str:
    """A few lines a split."""
    lines = []
    for statistics in found:
        facts = statistics.as_json()
        lines.append(
            f"{facts['split']}: {facts['num_examples']:,} images, "
            f"{facts['num_classes']:,} classes, "
            f"{facts['mean_classes_per_image']:.1f} an image on average, at most "
            f"{facts['max_classes_per_image']}"
        )
        for what in ("images", "pixels"):
            values = ", ".join(
                f"K = {facts[f'k_of_{share:g}_{what}']} for {share:.1%}"
                for share in SHARES
            )
            lines.append(f"  of the {what}: {values}")
    return "\n".join(lines)


def draw(found: list[SplitStatistics], directory: pathlib.Path) -> pathlib.Path:
    """Writes ``classes_per_image.png`` and ``statistics.json``; returns the picture."""
    # Without pyplot, which keeps figures and may ask for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from mlseg_jax.runs.checkpoint import write_json

    directory.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for colour, statistics in zip(("#1f6feb", "#d9730d"), found, strict=False):
        for curve, style, what in (
            (image_curve(statistics.presence), "-", "images with at most K classes"),
            (pixel_curve(statistics.presence), ":", "pixels of the K largest classes"),
        ):
            axes.plot(
                100 * curve, style, color=colour, label=f"{statistics.split}: {what}"
            )
    axes.set(xlabel="K", ylabel="share in percent", ylim=(0, 102))
    axes.set_xlim(left=0)
    axes.set_title(f"{found[0].info.name}, {found[0].info.num_classes} classes")
    axes.grid(alpha=0.3)
    # Below the axes, where it covers no curve.
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    path = directory / "classes_per_image.png"
    FigureCanvasAgg(figure).print_png(path)
    write_json(epath.Path(directory) / "statistics.json", [s.as_json() for s in found])
    return path
