"""Which files of a folder are images and masks, and which belong together."""

import bisect
import collections
import dataclasses
import os
import pathlib
import unicodedata
import zlib
from collections.abc import Callable

from input_pipeline.datasets.label_schema import CLASS_FILES
from input_pipeline.files import images, text
from input_pipeline.info import DataError

# Of 10 parts, how many the hash of a stem sends to the split "val".
_HASH_PARTS = 10
_SPLIT = "{split}"
_NEIGHBOURS = 50  # Names that are looked at for one that is nearly a mask's.

_NOT_READ = (
    *(".heic", ".heif", ".avif", ".jxl", ".tga", ".exr", ".hdr", ".svg", ".psd"),
    *(".npy", ".dcm", ".nii", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
    *(".raw", ".pcx", ".j2k", ".jpx", ".apng", ".ico", ".fits"),
)
"""Endings of pictures that are none of `images.IMAGE_SUFFIXES`."""


@dataclasses.dataclass(frozen=True)
class FolderLayout:
    """Where images and masks lie, and how their names end.

    Attributes:
      image_folder: of the images; "{split}" in it stands for the name of the split.
      mask_folder: of the masks, likewise.
      image_ending: end of the images' names, such as "_leftImg8bit.png"; "" is any
        ending of a picture.
      mask_ending: end of the masks' names, such as "_gtFine_labelIds.png".
    """

    image_folder: str = "images"
    mask_folder: str = "masks"
    image_ending: str = ""
    mask_ending: str = ".png"


USUAL_LAYOUT = FolderLayout()


@dataclasses.dataclass(frozen=True)
class FolderFiles:
    """The files of a split, by stem: the path in the folder without the ending.

    Attributes:
      stems: of the examples, in order.
      image_of, mask_of: file by stem, also of images and masks of no example.
      unused_masks: those that no image belongs to.
    """

    stems: list[str]
    image_of: dict[str, str]
    mask_of: dict[str, str]
    unused_masks: tuple[str, ...]


def find_files(
    root: pathlib.Path,
    split: str,
    layout: FolderLayout,
    report: Callable[[DataError], None],
) -> FolderFiles:
    """Lists the examples of a split, as `folder.Folder` has it.

    Args:
      root: the data folder.
      split: name of the split.
      layout: of the folder.
      report: called with each fault that concerns some examples alone, which are left
        out if it returns.

    Raises:
      DataError: a folder or list is missing, or there are no images.
    """
    is_split = _SPLIT in layout.image_folder
    image_dir, mask_dir = (
        root / folder.replace(_SPLIT, split)
        for folder in (layout.image_folder, layout.mask_folder)
    )
    if not is_split:
        folders = _sub_folders(image_dir, split, layout.image_ending)
        if folders:
            is_split, image_dir = True, image_dir / split
            if _SPLIT not in layout.mask_folder:
                mask_dir = mask_dir / split
    endings = (layout.image_ending,) if layout.image_ending else images.IMAGE_SUFFIXES
    listed = _walk(image_dir)
    beside = layout.mask_ending if mask_dir == image_dir else ""
    image_of, twice = _by_stem(listed, endings, report, beside)
    if not (image_of or twice):
        others = ", ".join(sorted({pathlib.PurePath(name).suffix for name in listed}))
        raise DataError(
            f"{image_dir} holds no images"
            f"{f' (but files ending in {others})' if others else ''}; put files ending "
            f"in {', '.join(endings)} there."
        )
    if not image_of:
        raise DataError(
            f"No image of {image_dir} has a stem of its own; rename them, or set "
            "data.image_ending to the ending of those that are no masks."
        )
    listed_masks = _walk(mask_dir)
    for name in CLASS_FILES if mask_dir == root else ():
        listed_masks.pop(name, None)
    mask_of, twice_masks = _by_stem(listed_masks, (layout.mask_ending,), report)
    if not layout.image_ending:
        masks = (layout.mask_ending,) if mask_dir == image_dir else ()
        others = {n: path for n, path in listed.items() if not _stem(n, masks)}
        for fault in _passed_over(others, image_of, mask_of, twice):
            report(fault)
    stems = sorted(image_of)
    if not is_split:
        stems = _choose_stems(root, split, image_dir, image_of, twice, report)
    missing = [stem for stem in stems if not (stem in mask_of or stem in twice_masks)]
    _report_missing(missing, image_of, mask_dir, listed_masks, layout, report)
    unused = [m for s, m in mask_of.items() if not (s in image_of or s in twice)]
    examples = [stem for stem in stems if stem in mask_of]
    return FolderFiles(examples, image_of, mask_of, tuple(unused))


def _sub_folders(image_dir: pathlib.Path, split: str, ending: str) -> list[str]:
    """The splits that have a folder each, or none; raises DataError."""
    entries = _list(image_dir)
    folders = sorted(e.name for e in entries if _is_folder(e))
    endings = (ending,) if ending else images.IMAGE_SUFFIXES
    loose = [e.name for e in entries if not _is_folder(e) and _stem(e.name, endings)]
    if folders and loose:
        raise DataError(
            f"{image_dir} holds both images and the folders {', '.join(folders)}; "
            "move the images into the folder of their split."
        )
    if folders and split not in folders:
        raise DataError(
            f"{image_dir} has no folder for the split {split!r}, only "
            f"{', '.join(folders)}; add it or choose one of these."
        )
    return folders


def _list(folder: pathlib.Path) -> list[os.DirEntry]:
    """The entries of a folder but hidden ones, which file managers leave."""
    try:
        # scandir knows files from folders without a further call for each entry.
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"Folder {folder} cannot be listed ({error.strerror}); it must be there "
            "and hold the files of images or masks."
        ) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _walk(folder: pathlib.Path) -> dict[str, str]:
    """Path by name, within the folder and all that it holds, in order of name."""
    found, waiting = {}, [("", folder, frozenset())]
    while waiting:
        prefix, place, above = waiting.pop()
        identity = os.path.realpath(place)
        if identity in above:  # A link into itself.
            continue
        above |= {identity}
        for entry in _list(place):
            if _is_folder(entry):
                waiting.append((f"{prefix}{entry.name}/", entry.path, above))
            else:
                found[prefix + entry.name] = entry.path
    return dict(sorted(found.items()))


def _composed(name: str) -> str:
    """One spelling of a name: an accented letter may be one character or two, by the
    program that named the file, and nobody sees which.
    """
    return unicodedata.normalize("NFC", name)


def _stem(name: str, endings: tuple[str, ...]) -> str:
    """The name without the ending that it has, or "" if it has none of them."""
    name = _composed(name)
    for ending in endings:
        if name.lower().endswith(ending.lower()):
            return name[: len(name) - len(ending)]
    return ""


def _by_stem(
    listed: dict[str, str], endings: tuple[str, ...], report, beside: str = ""
) -> tuple[dict[str, str], set[str]]:
    """Path by stem of the files with these endings, and the stems of several files.

    ``beside``: ending of masks that are in the folder, too.
    """
    groups = collections.defaultdict(list)
    for name, path in listed.items():
        stem = _stem(name, endings)
        if stem and not stem.endswith("/"):
            groups[stem].append(path)
    twice = {stem for stem, paths in groups.items() if len(paths) > 1}
    for stem in sorted(twice):
        advice, masks = "rename one", (beside,) if beside else ()
        pictures = [path for path in groups[stem] if not _stem(path, masks)]
        if masks and len(pictures) == 1:
            ending = os.path.splitext(pictures[0])[1]
            advice = f"set data.image_ending={ending} if the other is its mask"
        fault = (
            f"{' and '.join(groups[stem])} share the stem {stem!r}, so a mask cannot "
            f"tell them apart; {advice}."
        )
        report(DataError(fault, kind="listing"))
    return {s: paths[0] for s, paths in groups.items() if s not in twice}, twice


def _passed_over(listed, image_of, mask_of, twice):
    """Faults of files that look like images but have no ending that is read."""
    for name, path in listed.items():
        if _stem(name, images.IMAGE_SUFFIXES):
            continue
        stem, suffix = os.path.splitext(_composed(name))
        if stem in image_of or stem in twice:
            continue
        if stem in mask_of or suffix.lower() in _NOT_READ:
            yield DataError(
                f"File {path} is not read, for its ending is none of "
                f"{', '.join(images.IMAGE_SUFFIXES)}; convert it or move it.",
                kind="listing",
            )


def _report_missing(missing, image_of, mask_dir, listed_masks, layout, report) -> None:
    names = map(_composed, listed_masks)
    names = sorted((name.lower(), name) for name in names)
    for i, stem in enumerate(missing):
        others = (
            f", nor have {len(missing) - 1} others" if missing[1:] and i == 0 else ""
        )
        fault = (
            f"Image {image_of[stem]} has no mask "
            f"{mask_dir / stem}{layout.mask_ending}{others}; "
            f"{_hint(stem, names)}add the mask or remove the image."
        )
        report(DataError(fault, kind="no_mask"))


def _hint(stem: str, names: list[tuple[str, str]]) -> str:
    """What the mask may be called instead, from names in order of lower case."""
    wanted = stem.lower()
    start = bisect.bisect_left(names, (wanted,))
    for lower, name in names[start : start + _NEIGHBOURS]:
        ending = name[len(stem) :]
        if not lower.startswith(wanted) or ending[:1].isalnum():
            continue
        if ending.lower().endswith((".jpg", ".jpeg", ".jfif", ".webp", ".gif")):
            return f"there is {name}, but masks must be of a lossless format like PNG; "
        if not name.startswith(stem):
            return f"there is {name}, which differs in capital letters; "
        return f"there is {name}, so set data.mask_ending={ending} if that is it; "
    return ""


def _choose_stems(root, split, image_dir, image_of, twice, report) -> list[str]:
    """Returns the stems of a split that has no folder, by its list or by hash."""
    path = root / f"{split}.txt"
    if any((root / name).is_file() for name in ("train.txt", "val.txt")):
        if not path.is_file():
            raise DataError(
                f"There is no list {path} of the split {split!r}, though there is one "
                "of another split; write it, one file stem a line."
            )
        return _read_list(path, image_dir, image_of, twice, report)
    if split not in ("train", "val"):
        raise DataError(
            f"Folder {root} has no split {split!r}; write the list {path}, one file "
            'stem a line, or choose "train" or "val".'
        )
    # Names of files need not be UTF-8.
    hash_of = {stem: zlib.crc32(os.fsencode(stem)) for stem in image_of}
    order = sorted(image_of, key=lambda stem: (hash_of[stem], stem))
    # A stem keeps its split when files are added, but "val" always has at least one.
    val = {stem for stem in order if hash_of[stem] % _HASH_PARTS == 0}
    val = val or {order[0]}
    stems = sorted(val if split == "val" else set(order) - val)
    if not stems:
        raise DataError(
            f"Folder {root} has too few images to hold out some; write train.txt and "
            "val.txt, one file stem a line."
        )
    return stems


def _read_list(path: pathlib.Path, image_dir, image_of, twice, report) -> list[str]:
    stems = [_composed(line) for line in text.read_lines(path)]
    if not stems:
        raise DataError(f"List {path} is empty; write one file stem a line.")
    seen = {}
    for stem in stems:
        if stem in twice:
            continue  # That was reported.
        if stem not in image_of:
            fault = (
                f"List {path} names {stem!r}, but {image_dir} has no such image; "
                "correct the line (file names without their ending)."
            )
            report(DataError(fault, kind="listing"))
        elif stem in seen:
            fault = f"List {path} names {stem!r} twice; remove one line."
            report(DataError(fault, kind="listing"))
        else:
            seen[stem] = True
    return list(seen)
