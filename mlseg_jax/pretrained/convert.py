"""``convert``: a weight file to a work directory that every command takes."""

import dataclasses
import logging
import pathlib
import re
import shlex
from collections.abc import Sequence

import jax.numpy as jnp
import ml_collections

from input_pipeline.datasets import names as published
from input_pipeline.datasets.open import open_dataset
from input_pipeline.files import text
from input_pipeline.info import DatasetInfo
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.pretrained import dinov3, eomt
from mlseg_jax.pretrained.formats import recognise
from mlseg_jax.pretrained.load import complete, load_arrays, stack_blocks, with_facts
from mlseg_jax.pretrained.model_card import write_card
from mlseg_jax.pretrained.read import WeightFile, read_weights
from mlseg_jax.pretrained.suggest import suggest
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.workdir import claim_workdir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was written: a sentence a line.

    Attributes:
      workdir: where.
      title: what the file is.
      notes: what was made to fit, what starts anew, what was dropped and why.
    """

    workdir: str
    title: str
    notes: tuple[str, ...]


def convert(
    config: ml_collections.ConfigDict,
    weights: str,
    workdir: str,
    classes: str | None = None,
    base: str | None = None,
) -> Converted:
    """Turns a weight file into the checkpoint of step 0 of a new work directory.

    Args:
      config: what the file is to become.
      weights: ``.npz``, ``.safetensors`` or ``.pth``.
      workdir: must not exist, or be empty.
      classes: a text file with a class name a line.
      base: DINOv3's own weights, where those of EoMT are differences from them.

    Raises:
      UserError: the file cannot be read, is of no known kind, does not fit, or is of
        differences without a ``base``; the directory holds something. Nothing is
        written then.
    """
    _need_empty(workdir)
    file = read_weights(weights)
    key, source, arrays = recognise(file)
    if base is not None:
        arrays = _with_base(key, weights, arrays, base)
    elif key in eomt.KINDS and eomt.is_difference(arrays):
        raise UserError(
            f"{weights} ({source.title}) holds differences from DINOv3's weights, not "
            f"weights; name DINOv3's file of Hugging Face with --base."
        )
    if key in eomt.KINDS and eomt.is_rotary(arrays):
        licence = f"{source.licence}; {dinov3.LICENCE}"
        source = dataclasses.replace(source, licence=licence)
    config, notes = with_facts(config, source)
    there = source.num_classes(arrays)
    info, more = choose_classes(config, file, there, classes)
    with config.unlocked():
        # One set of weights: there is nothing to average yet.
        config.optimizer.ema_decay = 0.0
        config.init = ""
        if config.data.num_classes:
            config.data.num_classes = info.num_classes
    try:
        loaded = load_arrays(config, info.num_classes, source, arrays)
    except UserError as error:
        hint = suggest(file)
        raise UserError(
            f"{weights} ({source.title}) does not fit the configuration: {error}. "
            f"Nothing was written{f'; what fits is {hint}' if hint else ''}"
        ) from error
    notes = [*notes, *more, *loaded.notes, *describe_rest(loaded)]
    model = FunctionalModel.build(config, info.num_classes)
    parameters = stack_blocks(complete(config, info.num_classes, loaded), model.shapes)
    _write(config, workdir, info, model, parameters)
    write_card(workdir, config, info, model, file, source, notes)
    return Converted(workdir, source.title, tuple(notes))


def _with_base(key: str, weights: str, arrays, base: str):
    other, _, own = recognise(read_weights(base))
    if key not in eomt.KINDS or other != "hugging_face_dinov3":
        raise UserError(
            f"--base={base} is added to files of EoMT on DINOv3 alone and must be "
            f"DINOv3's file of Hugging Face; {weights} is {key}, the base {other}."
        )
    return eomt.add_base(arrays, own)


def _need_empty(workdir: str) -> None:
    path = pathlib.Path(workdir)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"{workdir} exists already and is not empty; choose another --workdir."
        )


def _write(config, workdir, info, model: FunctionalModel, parameters) -> None:
    claim_workdir(config, workdir, info)
    arrays = {path: jnp.asarray(array) for path, array in parameters.items()}
    learned = model.learned
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": {path: x for path, x in arrays.items() if path in learned},
        "stats": {path: x for path, x in arrays.items() if path not in learned},
    }
    checkpoints = Checkpoints(workdir)
    try:
        checkpoints.save(0, state)
        checkpoints.wait()
    finally:
        checkpoints.close()


def describe_rest(loaded) -> list[str]:
    """Sentences on what starts anew, and on what of the file is not used."""
    notes = []
    if loaded.fresh:
        parts = {}
        for path in loaded.fresh:
            parts[path.split("/")[0]] = parts.get(path.split("/")[0], 0) + 1
        counted = ", ".join(f"{part} ({n} arrays)" for part, n in parts.items())
        notes.append(f"not in the file and new: {counted}")
    reasons = {}
    for name, reason in loaded.dropped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        notes.append(f"not used: {', '.join(names)} ({reason})")
    return notes


# ----------------------------------------------------------------------- the classes


def choose_classes(
    config: ml_collections.ConfigDict,
    file: WeightFile,
    there: int | None,
    classes: str | None,
) -> tuple[DatasetInfo, list[str]]:
    """The classes of the work directory, and what to say of them."""
    info = _known_classes(config, classes)
    theirs = file.class_names
    if theirs is None or (there is not None and len(theirs) != there):
        theirs = ()
    count = info.num_classes if info else config.data.num_classes or there
    if count is None:
        raise UserError(
            "Neither the configuration nor the file says which classes there are; add "
            "--classes=FILE with a name a line."
        )
    if len(theirs) == count:
        if info is None:
            return _named(config, theirs), ["the names of the classes are the file's"]
        differing = [
            (i, a, b)
            for i, (a, b) in enumerate(zip(info.class_names, theirs, strict=True))
            if not _alike(a, b)
        ]
        if not differing:
            return info, []
        i, a, b = differing[0]
        example = f"{len(differing)} of {count}, such as class {i}: {a!r}, not {b!r}"
        # Lists of the same classes differ in some words, those of others in most.
        if classes is None and len(differing) > count // 2:
            note = "the names of the classes are the file's, not those of"
            return _named(config, theirs), [f"{note} {config.data.name} ({example})"]
        return info, [f"the file has other names of classes ({example})"]
    if info is not None:
        return info, []
    width = len(str(count - 1))
    numbered = [f"class {i:0{width}}" for i in range(count)]
    note = "nothing names the classes: they are numbered (--classes=FILE names them)"
    return _named(config, numbered), [note]


def _alike(a: str, b: str) -> bool:
    """Equal but for case and punctuation, or one begins with the other."""
    a, b = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (a, b))
    return a.startswith(b) or b.startswith(a)


def _known_classes(config, classes: str | None) -> DatasetInfo | None:
    """From a file of the user, from the data set, or from the published lists."""
    wanted = config.data.num_classes
    if classes is not None:
        info = _named(config, read_class_names(classes))
        if wanted not in (0, info.num_classes):
            raise UserError(
                f"{classes} names {info.num_classes} classes, but data.num_classes is "
                f"{wanted}; set it to {info.num_classes} or correct the file."
            )
        return info
    name = config.data.name.partition("/")[0]
    if config.data.path or name == "sign_scenes":
        try:
            return open_dataset(config.data, train=False).info
        except UserError as error:
            logger.warning("the data set does not say its classes: %s", error)
    if (pathlib.Path(published.__file__).parent / f"{name}.txt").is_file():
        info = published.read_info(name, name)
        return info if wanted in (0, info.num_classes) else None
    return None


def read_class_names(path: str) -> list[str]:
    lines = text.split_lines(text.read_text(path))
    names = [line.strip() for line in lines if line.strip()]
    for name in names:
        text.check_name(name, path)
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"{path} must name each class once, a line each; it has {len(names)} lines "
            f"and {len(set(names))} different ones."
        )
    return names


def _named(config, names: Sequence[str]) -> DatasetInfo:
    # Whether a class is countable is not known, and only panoptic metrics ask for it.
    return DatasetInfo(config.data.name, tuple(names), (False,) * len(names))


def print_converted(converted: Converted) -> None:
    print(f"{converted.title} -> {converted.workdir}")
    for note in converted.notes:
        print(f"  {note}")
    print(f"{converted.workdir}/model_card.md")


def suggestion(weights: str) -> str:
    """What is printed where no configuration is given."""
    file = read_weights(weights)
    key, source, arrays = recognise(file)
    found = suggest(file)
    if not found:
        return f"{weights}: {source.title}; no shipped configuration has this size."
    is_difference = key in eomt.KINDS and eomt.is_difference(arrays)
    return (
        f"{weights}: {source.title}\n"
        f"python main.py convert {found} "
        f"{shlex.quote(f'--weights={weights}')} --workdir=DIRECTORY"
        f"{' --base=DINOV3' if is_difference else ''}"
    )
