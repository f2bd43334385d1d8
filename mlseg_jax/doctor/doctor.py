"""What is wrong with a data set, all of it, before any training."""

import collections
import dataclasses
import pathlib

import cv2
import ml_collections
import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from input_pipeline.datasets.open import open_dataset
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.survey import Reading, survey, to_presence
from mlseg_jax.doctor.checks import Finding, check_splits, is_selection_chosen
from mlseg_jax.doctor.label_statistics import SplitStatistics, as_text
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import check_config
from mlseg_jax.prediction import fonts
from mlseg_jax.prediction.visualise import overlay
from mlseg_jax.runs.checkpoint import write_json
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.settings.advice import is_advised, selection_advice

NUM_SHEET_SAMPLES = 20
_SHEET_COLUMNS, _TILE_WIDTH = 4, 480
_SHOWN = 12  # Places that the text names for each finding; JSON has all.
_TAIL = 10  # Rarest classes that the text names.


@dataclasses.dataclass(frozen=True)
class Split:
    """What was found in one split.

    Attributes:
      name: such as "train".
      source: None where it cannot be opened.
      faults: of the listing of its files.
      readings: of the examples that were read.
      unused_masks: files that no image belongs to.
    """

    name: str
    source: object | None
    faults: tuple[DataError, ...]
    readings: tuple[Reading, ...]
    unused_masks: tuple[str, ...] = ()

    @property
    def info(self) -> DatasetInfo | None:
        return None if self.source is None else self.source.info

    @property
    def good(self) -> list[Reading]:
        """Readings without a fault."""
        return [reading for reading in self.readings if reading.fault is None]

    @property
    def is_whole(self) -> bool:
        """Whether all of its examples were read."""
        return self.source is not None and len(self.readings) == len(self.source)

    def statistics(self) -> SplitStatistics:
        """Of all examples where the data set knows, else of those that were read."""
        presence = getattr(self.source, "presence", None)
        if presence is None:
            presence = to_presence(self.good)
        return SplitStatistics(self.name, self.info, presence)

    def segment_counts(self) -> np.ndarray:
        """[n] segments of the examples that were read; [0] unless they are wanted."""
        counted = [r.segments for r in self.good if r.segments is not None]
        return np.asarray([counts.num_segments for counts in counted], int)

    def ignored_share(self) -> float:
        pixels = sum(reading.num_pixels for reading in self.readings)
        return sum(r.ignored_pixels for r in self.readings) / max(pixels, 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings about a data set; no findings is a clean one.

    Attributes:
      splits: training and evaluation.
      findings: what is wrong with them.
      advice: which selection would fit the training pictures; empty where nothing can
        be read or nothing is to be chosen.
    """

    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]
    advice: str = ""

    @property
    def training_would_go_wrong(self) -> bool:
        return any(finding.is_error for finding in self.findings)

    def as_json(self) -> dict:
        return {
            "training_would_go_wrong": self.training_would_go_wrong,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "advice": self.advice,
            "splits": [_split_json(split) for split in self.splits],
        }

    def as_text(self) -> str:
        lines = []
        for split in self.splits:
            lines += _split_lines(split)
        for finding in self.findings:
            level = "ERROR" if finding.is_error else "warning"
            lines.append(f"{level} [{finding.kind}] {finding.message}")
            lines += [f"    {place}" for place in finding.places[:_SHOWN]]
            if len(finding.places) > _SHOWN:
                lines.append(
                    f"    ... and {len(finding.places) - _SHOWN} more (--json)"
                )
        if self.advice:
            lines.append(f"advice: {self.advice}")
        errors = sum(finding.is_error for finding in self.findings)
        warnings = len(self.findings) - errors
        lines.append(
            f"{errors} kinds of errors, {warnings} kinds of warnings."
            if self.findings
            else "Nothing is wrong."
        )
        return "\n".join(lines)


def examine(config: ml_collections.ConfigDict, *, sample: int = 0) -> Report:
    """Reads both splits of the configured data set and says what is wrong.

    Args:
      config: of the training that is planned.
      sample: examples of each split to read, spread over it; 0 reads all.
    """
    check_config(config)
    splits = tuple(_read_split(config, train, sample) for train in (True, False))
    findings = tuple(check_splits(config, *splits))
    return Report(splits, findings, _selection_advice(config, splits[0]))


def _selection_advice(config: ml_collections.ConfigDict, train: Split) -> str:
    if not train.good or not is_advised(config):
        return ""
    num_labels = np.diff(train.statistics().presence.offsets)
    is_chosen = is_selection_chosen(config)
    return selection_advice(config, train.info.num_classes, num_labels, is_chosen)


def _read_split(config: ml_collections.ConfigDict, train: bool, sample: int) -> Split:
    name = config.data.train_split if train else config.data.eval_split
    faults = []
    try:
        source = open_dataset(config.data, train=train, report=faults.append)
    except (UserError, OSError) as error:
        fault = error if isinstance(error, DataError) else DataError(str(error))
        fault.kind = "open"
        return Split(name, None, (*faults, fault), ())
    count = min(sample, len(source)) or len(source)
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    readings = []
    with progress_bar(count, 0, f"reading {name}") as bar:
        for reading in survey(
            source, indices, config.data.num_threads, segments=config.data.segments
        ):
            readings.append(reading)
            bar.update()
    unused = tuple(getattr(source, "unused_masks", ()))
    return Split(name, source, tuple(faults), tuple(readings), unused)


def _split_json(split: Split) -> dict:
    facts = {"split": split.name, "opened": split.source is not None}
    if split.source is not None:
        facts |= split.statistics().as_json() | {
            "num_examples": len(split.source),
            "num_read": len(split.readings),
            "ignored_share": split.ignored_share(),
            "class_names": split.info.class_names,
        }
        if (counts := split.segment_counts()).size:
            facts["mean_segments_per_image"] = float(counts.mean())
            facts["max_segments_per_image"] = int(counts.max())
    return facts


def _split_lines(split: Split) -> list[str]:
    if split.source is None:
        return [f"{split.name}: cannot be opened"]
    statistics = split.statistics()
    images = statistics.as_json()["class_examples"]
    order = np.argsort(images, kind="stable")[:_TAIL]
    tail = ", ".join(f"{split.info.class_names[i]} {images[i]}" for i in order)
    counts = collections.Counter(min(count, 11) // 11 for count in images)
    found, segments = split.segment_counts(), []
    if found.size:
        segments.append(
            f"  {found.mean():.1f} segments an image on average, at most {found.max()}"
        )
    return [
        as_text([statistics]),
        *segments,
        f"  read {len(split.readings):,} of {len(split.source):,}; "
        f"{split.ignored_share():.1%} of the pixels are ignored",
        f"  {counts[0]} classes are in 10 images or fewer; rarest, by images: {tail}",
    ]


def write_sheet(report: Report, directory: pathlib.Path, font: str = "") -> None:
    """Writes ``samples.png``, twenty samples with legends, and ``doctor.json``.

    ``font``: a file of letters for names of other scripts than ours.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_json(epath.Path(directory) / "doctor.json", report.as_json())
    wanted = []
    for i, split in enumerate(report.splits):
        good = split.good
        share = (NUM_SHEET_SAMPLES - len(wanted)) // (len(report.splits) - i)
        chosen = np.linspace(0, len(good) - 1, min(share, len(good))).round()
        wanted += [(split, good[int(position)]) for position in chosen]
    tiles = [_tile(split, reading, font) for split, reading in wanted]
    if not tiles:
        return
    height = max(len(tile) for tile in tiles)
    rows = -(-len(tiles) // _SHEET_COLUMNS)
    shape = (rows * height, _SHEET_COLUMNS * _TILE_WIDTH, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // _SHEET_COLUMNS * height, i % _SHEET_COLUMNS * _TILE_WIDTH
        sheet[y : y + len(tile), x : x + _TILE_WIDTH] = tile
    Image.fromarray(sheet).save(directory / "samples.png")


def _tile(split: Split, reading: Reading, font: str) -> np.ndarray:
    """One sample with its legend and name, ``_TILE_WIDTH`` wide."""
    example = split.source[reading.index]
    names = split.info.class_names
    picture = overlay(example["image"], example["label_map"], names, font=font)
    height = max(1, round(picture.shape[0] * _TILE_WIDTH / picture.shape[1]))
    picture = cv2.resize(picture, (_TILE_WIDTH, height), interpolation=cv2.INTER_AREA)
    title = Image.new("RGB", (_TILE_WIDTH, 24), (255, 255, 255))
    text = fonts.drawable(f"{split.name}: {example['name']}", font)[-60:]
    fonts.draw_text(ImageDraw.Draw(title), (4.0, 12.0), text, (24, 24, 27), 13, font)
    return np.concatenate([np.asarray(title), picture])
