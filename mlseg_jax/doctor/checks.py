"""The checks of ``doctor``: from what was read of both splits to findings."""

import collections
from collections.abc import Iterator

import ml_collections
import numpy as np

from input_pipeline.files import labelme
from input_pipeline.findings import Finding, check_readings, differing_classes
from mlseg_jax.doctor.label_statistics import least_k, pixel_curve
from mlseg_jax.fitting.choices import changed
from mlseg_jax.settings.advice import is_advised
from mlseg_jax.training.checks import warmup_note

MAX_IGNORED_SHARE = 0.5
_ALIKE = 3
"""Masks with one value without a class that are told one by one."""

_FAULTS = {
    "open": "cannot be opened",
    "no_mask": "images have no mask",
    "listing": "entries of lists or files contradict each other",
    "unreadable": "examples cannot be read",
    "size": "images and masks differ in size",
    "unmapped": "masks hold values without a class",
    "no_instances": "examples have no instances, which data.segments wants",
    "polygon": "annotations have polygons of fewer than three points",
}
"""What the kinds of `DataError` mean, in the order in which they are told."""


def check_splits(
    config: ml_collections.ConfigDict, train, evaluation
) -> Iterator[Finding]:
    """All findings about two splits (`doctor.Split`)."""
    for split in (train, evaluation):
        yield from _check_faults(split, config.data.on_bad_example == "skip")
        yield from _check_labels(split)
        yield from _check_copies(split)
        if split.good:
            yield from check_readings(
                split.name,
                split.source,
                split.info,
                split.good,
                config.data.max_segments,
            )
    if train.source is None or evaluation.source is None:
        return
    yield from _check_leaks(train, evaluation)
    if train.info.class_names != evaluation.info.class_names:
        yield Finding(
            "classes_differ",
            True,
            differing_classes(
                (train.name, evaluation.name), train.info, evaluation.info
            ),
        )
        return
    yield from _check_classes(train, evaluation)
    yield from _check_selection(config, train)
    if note := warmup_note(config):
        yield Finding("warmup", False, note)


def _check_faults(split, skips: bool) -> Iterator[Finding]:
    by_kind = collections.defaultdict(list)
    read = [reading.fault for reading in split.readings if reading.fault is not None]
    for fault in (*split.faults, *read):
        by_kind[fault.kind].append(fault)
    for kind in sorted(by_kind, key=lambda k: [*_FAULTS, k].index(k)):
        faults = by_kind[kind]
        # Numbers, or colours as text.
        values = sorted({value for fault in faults for value in fault.values})
        named = f" ({', '.join(map(str, values[:50]))})" if values else ""
        places = _tell_unmapped(faults, len(split.readings), split.name)
        yield Finding(
            kind,
            kind == "open" or not skips,
            f"{split.name}: {len(faults)} {_FAULTS.get(kind, kind)}{named}.",
            places,
        )
    if split.readings and not split.good:
        yield Finding(
            "nothing_readable", True, f"{split.name}: not one example can be read."
        )
    if split.unused_masks:
        yield Finding(
            "no_image",
            False,
            f"{split.name}: {len(split.unused_masks)} masks belong to no image; add "
            "the images or remove the masks.",
            split.unused_masks,
        )


def _tell_unmapped(faults, num_read: int, name: str) -> tuple[str, ...]:
    """A line a fault; but one for all masks that lack the class of the same values."""
    by_values = collections.defaultdict(list)
    for fault in faults:
        by_values[fault.values].append(fault)
    places = []
    for values, alike in by_values.items():
        if not values or len(alike) <= _ALIKE:
            places += map(str, alike)
            continue
        shown = ", ".join(map(str, values[:10])) + (", ..." if values[10:] else "")
        advice = "name them, or ignore them with null, in a classes.json"
        if labelme.is_labelme(alike[0].path):
            advice = (
                "add each as a line of classes.txt, or rename it to __ignore__ in "
                "Labelme"
            )
        elif len(alike) > num_read / 2:
            advice = (
                "on most masks, so it is nearly always void: write a classes.json that "
                f'names the classes and ends in "{values[0]}": null'
            )
        files = ", ".join(fault.path for fault in alike[:_ALIKE])
        places.append(
            f"{shown} in {len(alike)} of {num_read} masks of {name}, {advice} "
            f"({files}, ...)"
        )
    return tuple(places)


def _check_labels(split) -> Iterator[Finding]:
    empty = [r.name for r in split.good if not len(r.class_ids)]
    if empty:
        yield Finding(
            "all_ignored",
            len(empty) == len(split.good),
            f"{split.name}: {len(empty)} examples have no labelled pixel, so nothing "
            "is learned from them; label or remove them.",
            tuple(empty),
        )
    blank = [f"{r.name} {r.colour}" for r in split.good if r.colour is not None]
    if blank:
        yield Finding(
            "blank",
            False,
            f"{split.name}: {len(blank)} pictures have only one colour, so perhaps "
            "they were exported wrongly; replace or remove them.",
            tuple(blank),
        )
    yield from _check_palettes(split)
    share = split.ignored_share()
    if share > MAX_IGNORED_SHARE:
        yield Finding(
            "ignored_share",
            False,
            f"{split.name}: {share:.1%} of the pixels are ignored; check that the "
            "ignored values are no classes.",
        )


def _check_palettes(split) -> Iterator[Finding]:
    """Palette masks whose colours, and not whose indices, are the classes."""
    users = collections.defaultdict(lambda: collections.defaultdict(list))
    for reading in split.good:
        for value, colour in (reading.palette or {}).items():
            users[value][colour].append(reading.name)
    places = []
    for value, names_of in sorted(users.items()):
        (common, names), *others = sorted(
            names_of.items(), key=lambda item: -len(item[1])
        )
        places += [
            f"value {value} is the colour {colour} in {', '.join(other[:3])} and "
            f"{common} in {', '.join(names[:3])}"
            for colour, other in others
        ]
    if places:
        yield Finding(
            "palette",
            True,
            f"{split.name}: palette masks number their colours differently, but the "
            "number is the class; save all with one palette, or as grey class numbers.",
            tuple(places),
        )


def _check_copies(split) -> Iterator[Finding]:
    """Equal pictures within a split."""
    groups = collections.defaultdict(list)
    for reading in split.good:
        groups[reading.image_hash].append(reading)
    copies = [group for group in groups.values() if len(group) > 1]
    contradicting = [g for g in copies if len({r.label_hash for r in g}) > 1]
    for kind, chosen, what in (
        ("contradiction", contradicting, "but different labels; keep the right one"),
        ("copies", [g for g in copies if g not in contradicting], "and label"),
    ):
        if chosen:
            yield Finding(
                kind,
                kind == "contradiction",
                f"{split.name}: {len(chosen)} groups of examples have the same picture "
                f"{what}.",
                tuple(" = ".join(r.name for r in group) for group in chosen),
            )


def _check_leaks(train, evaluation) -> Iterator[Finding]:
    name_of = {reading.image_hash: reading.name for reading in train.good}
    leaks = [
        f"{evaluation.name} {reading.name} = {train.name} {name_of[reading.image_hash]}"
        for reading in evaluation.good
        if reading.image_hash in name_of
    ]
    if leaks:
        yield Finding(
            "leak",
            True,
            f"{len(leaks)} pictures of {evaluation.name} are in {train.name} as well, "
            "so that scores would be too good; remove them from one.",
            tuple(leaks),
        )


def _check_classes(train, evaluation) -> Iterator[Finding]:
    """Classes that a split lacks; only where all of it is known."""
    whole = [
        _is_known(split) or getattr(split.source, "presence", None) is not None
        for split in (train, evaluation)
    ]
    names = np.asarray(train.info.class_names, object)
    in_train, in_evaluation = (
        np.asarray(split.statistics().as_json()["class_examples"]) > 0
        for split in (train, evaluation)
    )
    if not whole[0]:
        return
    only_evaluated = names[~in_train & in_evaluation]
    if len(only_evaluated):
        yield Finding(
            "only_in_evaluation",
            False,
            f"{len(only_evaluated)} classes are in {evaluation.name} but in no image "
            f"of {train.name}, so they cannot be learned; move images or drop them.",
            tuple(only_evaluated),
        )
    absent = names[~in_train & ~in_evaluation]
    if whole[1] and len(absent):
        yield Finding(
            "absent",
            False,
            f"{len(absent)} classes are in no image at all; drop them, or check the "
            "masks' values.",
            tuple(absent),
        )


def _is_known(split) -> bool:
    """Whether nearly all was read; else that classes are missing only follows."""
    return split.is_whole and 2 * len(split.good) > len(split.readings)


def is_selection_chosen(config: ml_collections.ConfigDict) -> bool:
    """Whether ``train`` chooses K, so that what is set stands for nothing."""
    return config.choose_settings and "selection.k" not in changed(config)


def _check_selection(config: ml_collections.ConfigDict, train) -> Iterator[Finding]:
    if config.selection.name != "top_k" or not is_advised(config) or not train.good:
        return
    if is_selection_chosen(config):
        return
    needed = least_k(pixel_curve(train.statistics().presence), 0.99)
    if config.selection.k < needed:
        yield Finding(
            "selection",
            False,
            f"selection.k is {config.selection.k}, but images of {train.name} need "
            f"K = {needed} for 99 % of their pixels; raise it.",
        )
