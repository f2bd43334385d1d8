"""Segments pictures with the exported model in this folder.

    python predict.py a.jpg more/ --output=out

writes for each picture a label map (a grey PNG of class ids), the picture under its
labels with a legend, and a line of ``labels.jsonl``. Needs onnxruntime, numpy and
pillow; ``predictor.py`` beside it does the work.
"""

import argparse
import json
import pathlib
import sys
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mlseg_jax.export import predictor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
ENDINGS = (".png", "_overlay.png")  # of the label map and the overlay
MAX_ROWS = 20  # of a legend
INK, MUTED = (24, 24, 27), (110, 110, 116)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", help="files, and folders of pictures")
    parser.add_argument("--output", default="out", help="folder to write to")
    parser.add_argument("--k", type=int, help="most labels of a window")
    parser.add_argument("--allowed", help="names of the only classes, by commas")
    parser.add_argument("--minimum_score", type=float, help="least probability")
    parser.add_argument("--threads", type=int, help="threads to use")
    flags = parser.parse_args()
    allowed = flags.allowed and [name.strip() for name in flags.allowed.split(",")]
    choice = {"k": flags.k, "allowed": allowed, "minimum_score": flags.minimum_score}
    try:
        model = predictor.load(pathlib.Path(__file__).parent, flags.threads)
        for name in allowed or ():
            model.class_id(name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        paths = paths_of(flags.pictures)
        names = names_of(paths, pathlib.Path(flags.output))
        done, problems = write(model, paths, names, flags.output, choice)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: {error.filename or flags.output} cannot be read or written "
            f"({error.strerror or error}); choose another --output."
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{done} pictures in {flags.output}")
    sys.exit(1 if problems else 0)


def paths_of(names):
    """Files as they are, and the pictures directly in folders; ValueError without."""
    paths = []
    for path in map(pathlib.Path, names):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        known = [p for p in inside if p.suffix.lower() in SUFFIXES]
        paths += inside if not path.is_dir() else known
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"there is no picture in {', '.join(names)}; name others.")
    return paths


def names_of(paths, output):
    """Names of each picture's label map and overlay in ``output``; all of them differ,
    also where upper and lower case are one.

    Raises ValueError where one of them is a picture, which would be written over.
    """
    fold = lambda name: unicodedata.normalize("NFC", str(name)).casefold()  # noqa: E731
    given, taken, names = {fold(path.resolve()) for path in paths}, set(), []
    for path in paths:
        stem = path.stem
        while taken & {fold(f"{stem}{end}") for end in ENDINGS}:
            stem += "_"
        names.append(tuple(f"{stem}{end}" for end in ENDINGS))
        taken.update(map(fold, names[-1]))
        for place in (output / name for name in names[-1]):
            if given & {fold(place.resolve()), fold(output.resolve() / place.name)}:
                raise ValueError(
                    f"{place} would be written over a picture; choose another --output."
                )
    return names


def write(model, paths, names, output, choice):
    """Returns how many pictures there are, and a sentence for each other one."""
    output, done, problems = pathlib.Path(output), 0, []
    output.mkdir(parents=True, exist_ok=True)
    with (output / "labels.jsonl").open("w", encoding="utf-8") as lines:
        for path, (label_map, drawing) in zip(paths, names, strict=True):
            try:
                image = read(path, model.about["views"])
            except Exception as error:  # Pillow raises nearly everything.
                problems.append(f"{path} cannot be read ({error}); it is left out.")
                continue
            try:
                result = model(image, **choice)
            except ValueError as error:  # very long
                problems.append(f"{path} is left out: {error}")
                continue
            write_label_map(output / label_map, result.label_map, len(model.names))
            overlay(image, result, model.about).save(output / drawing)
            line = {"image": str(path), "label_map": label_map, "overlay": drawing}
            lines.write(json.dumps(line | {"labels": result.labels}) + "\n")
            done += 1
    return done, problems


def read(path, settings):
    """uint8 [H W 3], turned as its EXIF says."""
    Image.MAX_IMAGE_PIXELS = settings["max_pixels"]
    with Image.open(path) as picture:
        if picture.width * picture.height > settings["max_pixels"]:
            raise ValueError(f"it has more than {settings['max_pixels']:,} pixels")
        if min(picture.size) < 2:
            raise ValueError("both sides must have at least 2 pixels")
        deep = picture.mode == "I" and picture.format == "PPM"  # 16 bits of a PGM
        if settings["exif"]:
            picture = ImageOps.exif_transpose(picture)
        if deep or picture.mode.startswith("I;16"):
            # As many levels as 8 bits have: white is 65535 unless it is said.
            white = settings.get("white", 65535)
            grey = np.asarray(picture).astype(np.int64) * 256 // (white + 1)
            picture = Image.fromarray(np.minimum(grey, 255).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            raise ValueError("its values have 32 bits and no known range")
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return np.asarray(picture.convert("RGB"))


def write_label_map(path, label_map, num_classes):
    """8 bits up to 255 classes, else 16."""
    kind = np.uint8 if num_classes <= 255 else np.uint16
    Image.fromarray(label_map.astype(kind)).save(path)


def overlay(image, result, about, strength=0.55):
    """The picture under its labels with their borders, and a legend."""
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in about["colours"]]
    table = np.array(colours, np.float32)
    labels = result.label_map
    factor = -(-480 // max(labels.shape))
    image, labels = (
        x.repeat(factor, 0).repeat(factor, 1) if factor > 1 else x
        for x in (image, labels)
    )
    # A band at a time: floats of a large picture are large.
    drawn = np.empty_like(image)
    for y in range(0, len(image), 512):
        part = labels[y : y + 512]
        tinted = (1 - strength) * image[y : y + 512] + strength * table[part]
        drawn[y : y + 512] = np.rint(tinted)
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    drawn[edge] = INK
    present = [label for label in result.labels if label["pixel_share"] > 0]
    present.sort(key=lambda label: -label["pixel_share"])
    return with_legend(Image.fromarray(drawn), present, colours)


def with_legend(picture, labels, colours):
    em = max(13, round(max(picture.size) / 52))
    letters = ImageFont.load_default(em)
    rows = [
        (
            colours[x["class_id"]],
            x["name"],
            percent(x["pixel_share"]),
            percent(x["score"]),
        )
        for x in labels[:MAX_ROWS]
    ]
    if len(labels) > MAX_ROWS:
        rows.append((None, f"+{len(labels) - MAX_ROWS} more", "", ""))
    longest = max([6 * em, *(letters.getlength(row[1]) for row in rows)])
    column, line = round(min(longest, 18 * em) + 12 * em), round(1.6 * em)
    size = picture.width + column, max(picture.height, (len(rows) + 2) * line + em)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture)
    draw, left = ImageDraw.Draw(canvas), picture.width + em
    for number, (colour, name, *numbers) in enumerate(
        [(None, "label", "pixels", "score"), *rows]
    ):
        top = em + number * line
        if colour:
            box = (left, top, left + em, top + em)
            draw.rectangle(box, fill=colour, outline=INK)
        while letters.getlength(name) > 18 * em:
            name = name[:-2].rstrip("…") + "…"
        ink = INK if colour else MUTED
        middle = top + em // 2
        draw.text((left + 1.6 * em, middle), name, ink, letters, anchor="lm")
        for place, number_text in enumerate(reversed(numbers)):
            right = size[0] - em - 4.2 * em * place
            draw.text((right, middle), number_text, ink, letters, anchor="rm")
    return canvas


def percent(value):
    return "<0.1%" if 0 < value < 5e-4 else f"{value:.1%}"


if __name__ == "__main__":
    main()
