"""What is odd about data that can be read: found by ``doctor``, said by ``train``."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from input_pipeline.info import DatasetInfo
from input_pipeline.survey import Reading

_REMARKS = {
    "exif": (
        "pictures are turned by their EXIF in a way that sizes do not show; if masks "
        "are of the pixels as stored, set data.exif=False"
    ),
    "range": (
        "pictures have 16 bits but only dark values, so that few grey levels are left; "
        "set data.white_value to the largest value there can be, such as 4095"
    ),
    "ignore_value": (
        "masks of 8 bits hold 255, which is a class since there are more than 255; if "
        "it means void, save these masks with 16 bits and 65535 for void, or write a "
        "classes.json that says null of 255"
    ),
    "empty_segment": (
        "panoptic annotations list segments without a pixel in their PNG; get the JSON "
        "and the PNG files of one version"
    ),
    "segment_area": (
        "panoptic annotations give areas that are not the numbers of pixels in their "
        "PNG; PQ takes the larger of both and panopticapi what is written, so write "
        "the areas anew"
    ),
}
"""What the kinds of remarks mean, and what to do."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong.

    Attributes:
      kind: short name.
      is_error: whether training would go wrong; else it is a warning.
      message: what is wrong and what to do.
      places: the files, examples or classes.
    """

    kind: str
    is_error: bool
    message: str
    places: tuple[str, ...] = ()


def check_readings(
    name: str,
    source,
    info: DatasetInfo,
    good: Sequence[Reading],
    max_segments: int,
) -> Iterator[Finding]:
    """Findings about examples of a split that can be read.

    Args:
      name: of the split.
      source: of the examples.
      info: of the source.
      good: what was read, with hashes, remarks and, if wanted, segments.
      max_segments: that a crop can have.
    """
    by_kind = collections.defaultdict(list)
    for reading in good:
        for remark in reading.remarks:
            by_kind[remark.kind].append(str(remark))
    for kind, places in by_kind.items():
        message = f"{name}: {len(places)} {_REMARKS[kind]}."
        yield Finding(kind, False, message, tuple(places))
    yield from _check_ignored_value(name, source, info, good)
    if any(reading.segments is not None for reading in good):
        yield from _check_segments(name, good, max_segments)


def _check_segments(
    name: str, good: Sequence[Reading], max_segments: int
) -> Iterator[Finding]:
    """Pictures with too many segments or none, and things without instances."""
    most = max(reading.segments.num_segments for reading in good)
    for kind, chosen, what in (
        (
            "no_segments",
            [r for r in good if not r.segments.num_segments],
            "pictures have no segment, so nothing is found in them; check "
            "data.segments, and that things have instances",
        ),
        (
            "many_segments",
            [r for r in good if r.segments.num_segments > max_segments],
            f"pictures have more segments than data.max_segments, {max_segments} (at "
            f"most {most}); of a crop with so many the smallest are left out, so raise "
            "it if they matter",
        ),
        (
            "unclaimed",
            [r for r in good if r.segments.num_unclaimed],
            "pictures have pixels of things that belong to no instance; they count as "
            "void, so give them instances, or ignore them in the masks too",
        ),
    ):
        if chosen:
            is_error = kind == "no_segments" and len(chosen) == len(good)
            message = f"{name}: {len(chosen)} {what}."
            yield Finding(kind, is_error, message, tuple(r.name for r in chosen))


def _check_ignored_value(name, source, info, good) -> Iterator[Finding]:
    """Masks of two values, 0 and 255, where 0 and 1 were meant."""
    seen = {int(class_id) for reading in good for class_id in reading.class_ids}
    holders = [reading for reading in good if reading.ignored_pixels]
    ignored_value = getattr(source, "ignored_value", None)
    if len(seen) != 1 or not holders or info.num_classes < 2 or ignored_value is None:
        return
    value = ignored_value(holders[0].index)
    if value is None:
        return
    pixels = sum(reading.num_pixels for reading in good)
    share = sum(reading.ignored_pixels for reading in holders) / pixels
    (only,) = seen
    others = [n for i, n in enumerate(info.class_names) if i != only]
    table = f'{{"{only}": "{info.class_names[only]}", "{value}": "{others[0]}"}}'
    yield Finding(
        "ignored_value",
        True,
        f"{name}: masks hold the value {value} at {share:.1%} of the pixels, where it "
        f"is ignored, and else only the class {info.class_names[only]!r}; {value} "
        f"probably means {others[0]!r}, so write a classes.json {table} in place of "
        "classes.txt.",
        tuple(reading.name for reading in holders),
    )


def differing_classes(
    names: tuple[str, str], train: DatasetInfo, evaluation: DatasetInfo
) -> str:
    """A sentence about two splits whose classes are not the same."""
    details = []
    for name, own, other in (
        (names[0], train, evaluation),
        (names[1], evaluation, train),
    ):
        more = [n for n in own.class_names if n not in other.class_names]
        if more:
            shown = ", ".join(map(repr, more[:3])) + (", ..." if more[3:] else "")
            details.append(f"only {name} has {shown}")
    details = "; ".join(details) or "they have the same names in another order"
    return (
        f"The splits {names[0]!r} and {names[1]!r} have different classes ({details}); "
        "both must be of one data set, and of JSON annotations a classes.json beside "
        "them, which names every category of both, makes them so."
    )
