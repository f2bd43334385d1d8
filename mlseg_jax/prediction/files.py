"""The files that ``predict`` reads and writes."""

import numpy as np
from etils import epath

from input_pipeline.files.images import IMAGE_SUFFIXES
from mlseg_jax.errors import UserError
from mlseg_jax.prediction.segmenter import Prediction


def picture_paths(names: list[str]) -> list[epath.Path]:
    """Files as they are, directories as the pictures directly in them."""
    paths = []
    for name in names:
        path = epath.Path(name)
        if path.is_dir():
            inside = sorted(path.iterdir())
            found = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                raise UserError(f"The directory {name} holds no pictures.")
            paths += found
        elif path.exists():
            paths.append(path)
        else:
            raise UserError(f"There is no picture {name}; correct --images.")
    if not paths:
        raise UserError("No pictures are given; add --images=a.jpg,directory/.")
    return paths


def output_stems(paths: list[epath.Path]) -> list[str]:
    """The files' stems, longer where those are not unique."""
    stems = [path.stem for path in paths]
    full = ["_".join([*p.parts[-2:-1], p.name.replace(".", "_")]) for p in paths]
    chosen = [
        long if stems.count(stem) > 1 else stem
        for stem, long in zip(stems, full, strict=True)
    ]
    return [
        f"{stem}_{i}" if chosen.count(stem) > 1 else stem
        for i, stem in enumerate(chosen)
    ]


def check_output(output, stems: list[str], paths: list[epath.Path]) -> None:
    """Label maps are PNG files, as pictures may be: none is written over a picture."""
    given = {path.resolve() for path in paths}
    for stem in stems:
        for name in (f"{stem}.png", f"{stem}_overlay.png"):
            if (output / name).resolve() in given:
                raise UserError(
                    f"{output / name} would be written over a picture of --images; "
                    f"choose another --output."
                )


def write_picture(path: epath.Path, image: np.ndarray) -> None:
    from PIL import Image

    with path.open("wb") as file:
        Image.fromarray(image).save(file, format="png")


def labels_line(path: epath.Path, prediction: Prediction) -> dict:
    return {
        "image": str(path),
        "labels": [
            {
                "name": label.name,
                "class_id": label.class_id,
                "score": round(label.score, 6),
                "rank": label.rank,
                "pixel_share": round(label.share, 6),
            }
            for label in prediction.labels
        ],
    }
