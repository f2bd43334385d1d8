"""COCO+LVIS, 1,284 classes: LVIS v1 instances over the stuff of COCO.

There is no such data set to download; this builds it as ESSNet did (method.md 12.5).
LVIS instances are painted in the order of the file and the first painter wins, also
against later ones; stuff, painted by the same rule, fills what is left. Ten stuff
classes are LVIS classes too and join them, the other 81 follow the 1,203 of LVIS.

ESSNet applied its table of stuff labels entry after entry in place. Two entries chain:
blanket becomes LVIS's 110, which then is taken for the stuff 110 (desk-stuff), and
cabinet likewise becomes window-other. Published figures are on such labels, so they are
the default; the variant ``coco_lvis_fix_mapping`` has blanket and cabinet. (ESSNet also
wrapped values over 255 around in images with a single stuff region; neither variant
does.)

Layout of ``manual_dir``, in which ``annotations/`` and ``images/`` may be left out::

    annotations/lvis_v1_{train,val}.json
    annotations/stuff_{train,val}2017.json
    images/{train,val}2017/*.jpg         LVIS val has images of both folders
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.datasets import coco_format, coco_images, instances
from input_pipeline.files import coco_masks
from input_pipeline.info import DataError, DatasetInfo
from input_pipeline.preparation import prepared

NUM_LVIS, NUM_STUFF = 1203, 81
STUFF_IDS = range(92, 183)
OTHER = 183
"""COCO's stuff category of everything that is none: it covers, but is no class."""

MERGED = {92: 50, 93: 110, 98: 181, 108: 346, 109: 350, 137: 713, 141: 804, 153: 904,
          165: 1050, 168: 1108}  # fmt: skip
"""LVIS id of the stuff ids that are LVIS classes."""

# ESSNet's loader leaves it out and does not say why.
_LEFT_OUT = {"train": {429995}, "val": set()}
_PUBLISHED = {"train": 100_170, "val": 19_809}
_LAST_RAW = 255


def stuff_labels(fix_mapping: bool) -> np.ndarray:
    """Raw label (0 none, 1..1203 LVIS, 1204..1284 stuff) by COCO stuff id, int32 [256].

    Args:
      fix_mapping: False chains the entries as the published labels do.
    """
    own = [stuff for stuff in STUFF_IDS if stuff not in MERGED]
    table = MERGED | {stuff: NUM_LVIS + 1 + i for i, stuff in enumerate(own)}
    table |= {OTHER: 0, _LAST_RAW: 0}
    labels = np.arange(_LAST_RAW + 1, dtype=np.int32)
    for stuff in sorted(table):
        labels[stuff if fix_mapping else labels == stuff] = table[stuff]
    return labels


def paint(
    size: tuple[int, int],
    lvis: tuple[pathlib.Path, Sequence[dict]],
    stuff: tuple[pathlib.Path, Sequence[dict]],
    fix_mapping: bool,
) -> np.ndarray:
    """Label map of one image.

    Args:
      size: (H, W).
      lvis: file, for errors, and its annotations of the image in the file's order.
      stuff: the same of COCO's stuff.
      fix_mapping: see `stuff_labels`.

    Returns:
      int32 [H W] of class ids and IGNORE.

    Raises:
      DataError: a segmentation is damaged or does not fit the image.
    """
    raw, fill = (
        coco_masks.paint(
            ((a["category_id"], coco_format.draw(a, size, path)) for a in annotations),
            size,
            empty=0,
        )
        for path, annotations in (lvis, stuff)
    )
    raw = np.where(raw == 0, stuff_labels(fix_mapping)[fill], raw)
    return raw - 1  # 0, which is nothing, becomes IGNORE.


@dataclasses.dataclass
class CocoLvisConfig(tfds.core.BuilderConfig):
    """A variant: which labels blanket and cabinet of COCO's stuff get."""

    coco_lvis_fix_mapping: bool = False


class CocoLvis(instances.NamedByFiles):
    """TFDS builder; images are named ``train2017/000000000009``."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        CocoLvisConfig(name="published", description="ESSNet's mapping of stuff"),
        CocoLvisConfig(
            name="coco_lvis_fix_mapping",
            description="blanket and cabinet keep their names",
            coco_lvis_fix_mapping=True,
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack LVIS v1, COCO's stuff annotations and images of 2017 in manual_dir."
    )

    # Ids of images by split, known once raw_splits was called.
    _left_out = {"train": set(), "val": set()}

    def expected_examples(self) -> dict[str, int]:
        return {s: _PUBLISHED[s] - len(left) for s, left in self._left_out.items()}

    def raw_splits(
        self, manual_dir: pathlib.Path
    ) -> dict[str, Sequence[prepared.RawExample]]:
        stuff = [_read(manual_dir, f"stuff_{s}2017.json") for s in ("train", "val")]
        for file in stuff:
            _check_ids(file, STUFF_IDS, (*STUFF_IDS, OTHER), "COCO's stuff of 2017")
        splits, self._left_out = {}, {}
        for split in ("train", "val"):
            lvis = _read(manual_dir, f"lvis_v1_{split}.json")
            ids = range(1, NUM_LVIS + 1)
            _check_ids(lvis, ids, ids, "LVIS v1")
            self.found_info = _class_info(lvis, stuff[0])
            raws, left_out = [], set(_LEFT_OUT[split]) & set(lvis.owners)
            for number, image in lvis.owners.items():
                file = next((f for f in stuff if number in f.owners), None)
                layers = [
                    (f.path, tuple(f.annotations[number])) for f in (lvis, file) if f
                ]
                # As ESSNet: COCO must know the image, and something be annotated.
                known = file is not None and any(a for _, a in layers)
                if number in left_out or not known:
                    left_out.add(number)
                else:
                    raws.append(self._example(manual_dir, lvis.path, image, layers))
            splits[split], self._left_out[split] = raws, left_out
        return splits

    def _example(self, manual_dir, path, image, layers) -> prepared.RawExample:
        where = f"Image {image['id']} of {path}"
        size = coco_masks.check_image_size(
            image.get("width"), image.get("height"), where
        )
        name = coco_images.lvis_image_name(image) or image.get("file_name")
        file = coco_images.image_file(manual_dir / "images", name, path)
        if not file.parent.is_dir():
            file = coco_images.image_file(manual_dir, name, path)
        return prepared.RawExample(
            key=str(pathlib.PurePosixPath(name).with_suffix("")),
            image=file,
            make_label=functools.partial(
                paint, size, *layers, self.builder_config.coco_lvis_fix_mapping
            ),
        )


def _read(manual_dir: pathlib.Path, name: str) -> coco_format.CocoFile:
    places = [f"annotations/{name}", name]
    return coco_format.read(coco_format.find(manual_dir, places, f"file {name}"))


def _check_ids(file: coco_format.CocoFile, needed, allowed, what: str) -> None:
    missing = sorted(set(needed).difference(file.categories))
    excess = sorted(set(file.categories).difference(allowed))
    if missing or excess:
        text = (
            f"lacks category {missing[0]}" if missing else f"has category {excess[0]}"
        )
        raise DataError(
            f"{file.path} {text} and so is not {what} ({len(file.categories)} "
            "categories); download that version."
        )


def _class_info(lvis: coco_format.CocoFile, stuff: coco_format.CocoFile) -> DatasetInfo:
    own = [
        category["name"]
        for number, category in stuff.categories.items()
        if number in STUFF_IDS and number not in MERGED
    ]
    return lvis.info("coco_lvis", extra=own)
