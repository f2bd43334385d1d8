"""The files that ``predict`` reads and writes."""

import contextlib
import logging
import os
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence

from etils import epath

from input_pipeline.files.images import IMAGE_SUFFIXES
from mlseg_jax.errors import UserError
from mlseg_jax.inference.segments import Segment
from mlseg_jax.prediction.legend import Drawing
from mlseg_jax.prediction.png import write_png
from mlseg_jax.prediction.prediction import Prediction

logger = logging.getLogger(__name__)

LABELS = "labels.jsonl"
MAX_STEM_BYTES = 180
"""Longer names are cut: with endings and directories they must fit a file system."""


# ------------------------------------------------------------------------------- read


def picture_paths(names: Sequence[str]) -> tuple[list[epath.Path], list[str]]:
    """Files as they are, directories as the pictures directly in them, each once.

    Hidden files of a directory (macOS writes ``._a.png`` beside ``a.png``) are passed
    over. Returns also a sentence for each name that leads nowhere.

    Raises:
      UserError: no picture is given, or none is there.
    """
    names = [name for name in names if name.strip()]
    if not names:
        raise UserError("No pictures are given; add --images=a.jpg,directory/.")
    paths, problems = {}, []
    for name in names:
        path = epath.Path(name).expanduser()
        try:
            if path.is_dir():
                found = _pictures_in(path)
                if not found:
                    problems.append(f"The directory {name} holds no pictures.")
            elif path.exists():
                found = [path]
            else:
                found = []
                problems.append(f"There is no picture {name}; correct --images.")
        except OSError as error:
            found = []
            problems.append(f"{name} cannot be read ({error.strerror}).")
        paths |= {os.path.normpath(p): p for p in found}
    if not paths:
        raise UserError(" ".join(problems[:3]))
    return list(paths.values()), problems


def _pictures_in(folder: epath.Path) -> list[epath.Path]:
    inside = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    pictures = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
    others = [p for p in inside if p.suffix.lower() not in IMAGE_SUFFIXES]
    found = [p for p in pictures if not p.is_dir()]
    folders = [p.name for p in inside if p.is_dir()]
    if folders:
        logger.warning(
            "%s: only the pictures directly in it are taken, not those in %s; name "
            "such folders in --images",
            *(folder, _some(folders)),
        )
    files = [p.name for p in others if p.name not in folders]
    if files:
        logger.info("%s: %s: no picture by the ending", folder, _some(files))
    return found


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# ------------------------------------------------------------------------------ write


def output_names(paths: Sequence[epath.Path]) -> list[tuple[str, str]]:
    """Names of each picture's label map and overlay; all of them differ.

    They differ also where upper and lower case are one (macOS, Windows). Made of the
    files' stems where these are unique, else of the directory's and the whole name.
    """
    stems = [_cut(path.stem) for path in paths]
    counts = Counter(_fold(name) for stem in stems for name in _names_of(stem))
    unique = [
        all(counts[_fold(name)] == 1 for name in _names_of(stem)) for stem in stems
    ]
    taken = {
        _fold(name)
        for stem, alone in zip(stems, unique, strict=True)
        if alone
        for name in _names_of(stem)
    }
    names = []
    for path, stem, alone in zip(paths, stems, unique, strict=True):
        long = _cut("_".join([*path.parts[-2:-1], path.name.replace(".", "_")]))
        number, candidate = 1, stem if alone else long.strip("/")
        while not alone and taken & set(map(_fold, _names_of(candidate))):
            number += 1
            candidate = f"{long.strip('/')}_{number}"
        taken.update(map(_fold, _names_of(candidate)))
        names.append(_names_of(candidate))
    return names


def _names_of(stem: str) -> tuple[str, str]:
    return f"{stem}.png", f"{stem}_overlay.png"


def _fold(name: str) -> str:
    """One text for all names that a file system may take for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _real(path: epath.Path) -> str:
    """Where a file is, past links, which epath's own ``resolve`` does not follow."""
    name = os.fspath(path)
    return name if "://" in name else os.path.realpath(name)


def _cut(stem: str) -> str:
    return os.fsencode(stem)[-MAX_STEM_BYTES:].decode(errors="ignore") or stem


def check_output(
    output: epath.Path, names: Sequence[tuple[str, str]], paths: Sequence[epath.Path]
) -> None:
    """Label maps are PNG files, as pictures may be: none is written over a picture."""
    given = {_fold(_real(path)) for path in paths}
    folder = _real(output)
    segments = [f"panoptic/{label_map}" for label_map, _ in names]
    for name in [*segments, *(name for pair in names for name in pair)]:
        if given & {_fold(f"{folder}/{name}"), _fold(_real(output / name))}:
            raise UserError(
                f"{output / name} would be written over a picture of --images; "
                f"choose another --output."
            )


@contextlib.contextmanager
def replaced_when_complete(output: epath.Path) -> Iterator[epath.Path]:
    """A folder for results, which go to ``output`` when the block ends.

    Where it is left by an exception, or killed, ``output`` keeps what it had, and what
    was done so far stays in the folder, which is inside ``output``.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = output / f"unfinished-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        if any(path.name != LABELS for path in folder.iterdir()):
            logger.warning("what was done until then is in %s", folder)
        else:
            folder.rmtree()
        raise
    # The labels last: what they name is there.
    for path in sorted(_files_in(folder), key=lambda path: path.name == LABELS):
        place = output / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    folder.rmtree(missing_ok=True)


def _files_in(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_in(path)
        else:
            yield path


def write_drawing(path: epath.Path, drawing: Drawing) -> None:
    with path.open("wb") as file:
        write_png(file, drawing.size, drawing.bands())


def labels_line(
    path: epath.Path, names: tuple[str, str], prediction: Prediction
) -> dict:
    """What ``labels.jsonl`` says of a picture; its files lie beside it."""
    line = {
        "image": str(path),
        "label_map": names[0],
        "overlay": names[1],
        "labels": label_entries(prediction),
    }
    if prediction.found is not None:
        line["segments"] = [
            {"id": segment.segment_id} | segment_entry(segment)
            for segment in prediction.segments
        ]
    return line


def label_entries(prediction: Prediction) -> list[dict]:
    """What lines say of the labels of a picture."""
    return [
        {
            "name": label.name,
            "class_id": label.class_id,
            "score": round(label.score, 6),
            "rank": label.rank,
            "pixel_share": round(label.share, 6),
        }
        for label in prediction.labels
    ]


def segment_entry(segment: Segment) -> dict:
    """What lines say of a segment beside its number."""
    return {
        "name": segment.label,
        "class_id": segment.class_id,
        "score": round(segment.score, 6),
        "rank": segment.rank,
        "area": segment.area,
        "box": list(segment.box),
    }
