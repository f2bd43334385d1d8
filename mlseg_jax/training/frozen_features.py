"""Features of a backbone that is not trained: computed once and kept on disk.

Some crops of each training picture (``data.feature_variants``) go through the backbone
before the first step; steps then read their features, 16-bit floats, and train what
follows. What is kept is taken up where a run was stopped.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import time

import jax
import ml_collections
import numpy as np

from input_pipeline.augmentation.augment import make_augment
from input_pipeline.datasets.bad_examples import replace_bad
from input_pipeline.datasets.data_version import data_facts
from mlseg_jax.distributed.sharding import within
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.encoder_only import held_back
from mlseg_jax.models.mlseg import clear_padding
from mlseg_jax.models.parts import REGION_DECODERS
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.training.optimizer import frozen_paths
from mlseg_jax.typing import Array, Float

logger = logging.getLogger(__name__)

FOLDER = "features"
"""In the work directory."""

TOO_LATE = (
    "The minutes were over before all features of the backbone were computed; give "
    "more with --minutes, or --config.data.feature_variants=1."
)

BATCH = 8
"""Crops that go through the backbone at a time."""


def is_used(config: ml_collections.ConfigDict) -> bool:
    return config.data.feature_variants > 0


@dataclasses.dataclass(frozen=True)
class Kept:
    """A source of training examples that stand for a picture each, as `info` describes;
    `draw` gives one of its crops as features.

    Attributes:
      source: of the pictures.
      num_variants: V crops of each picture.
      features: float16 [N*V h w D].
      label_maps: [N*V H W].
    """

    source: object
    num_variants: int
    features: Float[np.ndarray, "NV h w D"]
    label_maps: np.ndarray

    @property
    def info(self):
        return self.source.info

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        return self.source[index]

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        row = index * self.num_variants + int(rng.integers(self.num_variants))
        return {
            "name": str(row),
            "features": np.array(self.features[row]),
            "label_map": self.label_maps[row].astype(np.int32),
        }

    @staticmethod
    def augment(example: dict, rng: np.random.Generator) -> dict:
        """Nothing: the crops are made."""
        del rng
        return example


def kept_features(
    config: ml_collections.ConfigDict,
    model: FunctionalModel,
    mesh,
    state: dict,
    source,
    augment,
    workdir: str,
    on_progress,
) -> Kept:
    """Computes what is not there yet.

    Args:
      config: of the run.
      model: without its numbers.
      mesh: that ``state`` lies on.
      state: of the training, whose backbone is frozen.
      source: of training pictures.
      augment: makes a crop of an example, with a generator.
      workdir: of the run; what is kept lies in its folder `FOLDER`.
      on_progress: called with the number of crops after each batch; it may raise, and
        nothing is lost.

    Raises:
      UserError: the backbone is trained, or there is a `hindrance`, or the disk has no
        room.
    """
    _check(config, model)
    crop, size = tuple(config.data.crop_size), len(source)
    encode = _encoder(model, mesh)
    weights = state["params"] | state["stats"]
    images = jax.ShapeDtypeStruct((BATCH, *crop, 3), np.uint8)
    sizes = jax.ShapeDtypeStruct((BATCH, 2), np.int32)
    shape = jax.eval_shape(encode, weights, images, sizes).shape[1:]
    rows = size * config.data.feature_variants
    octets = rows * (2 * int(np.prod(shape)) + 4 * int(np.prod(crop)))
    logger.info(
        "features of %d crops of each of %d pictures: %.2f GB on disk",
        *(config.data.feature_variants, size, octets / 1e9),
    )
    folder = pathlib.Path(workdir) / FOLDER
    digest = _digest(config, weights, source, folder.parent)
    done, features, label_maps = _open(folder, digest, {
        "done": ((rows,), np.bool_),
        "features": ((rows, *shape), np.float16),
        "label_maps": ((rows, *crop), np.int32),
    })  # fmt: skip
    missing = np.flatnonzero(~done)
    with progress_bar(rows, rows - len(missing), "features") as bar:
        for first in range(0, len(missing), BATCH):
            chosen = missing[first : first + BATCH]
            crops = [_crop(config, source, augment, int(row)) for row in chosen]
            values = np.asarray(encode(weights, *_batch(crops)))
            features[chosen] = values[: len(crops)]
            label_maps[chosen] = [each["label_map"] for each in crops]
            # In this order, so that what is noted as done is there.
            for array in (features, label_maps):
                array.flush()
            done[chosen] = True
            done.flush()
            bar.update(len(chosen))
            on_progress(first + len(chosen))
    return Kept(source, config.data.feature_variants, features, label_maps)


def sample(
    config: ml_collections.ConfigDict, model: FunctionalModel, mesh, state: dict, source
) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds that computing all features will take, and a training batch of features,
    the same few crops again and again; nothing is kept. Arguments as `kept_features`.
    """
    _check(config, model)
    source = replace_bad(source, config.data.on_bad_example)
    augment = make_augment(config.data, None, source.info)
    encode, weights = _encoder(model, mesh), state["params"] | state["stats"]
    jax.block_until_ready(
        encode(weights, *_batch([_crop(config, source, augment, 0)]))  # compiles
    )
    begin = time.perf_counter()
    rows = min(BATCH, len(source) * config.data.feature_variants)
    crops = [_crop(config, source, augment, row) for row in range(rows)]
    features = np.asarray(encode(weights, *_batch(crops)))
    seconds = (time.perf_counter() - begin) / rows
    chosen = np.arange(config.train.batch_size) % rows
    label_maps = np.stack([each["label_map"] for each in crops])
    batch = {"features": features[chosen], "label_map": label_maps[chosen]}
    return seconds * len(source) * config.data.feature_variants, batch


def _batch(crops: list[dict]) -> list[np.ndarray]:
    """Images and sizes of so many crops, filled up with what is thrown away."""
    full = [*crops, *[crops[0]] * (BATCH - len(crops))]
    return [np.stack([each[key] for each in full]) for key in ("image", "image_size")]


def _check(config, model: FunctionalModel) -> None:
    frozen = frozen_paths(config, model.learned)
    trained = [
        path
        for path in model.learned
        if path.startswith("backbone/") and path not in frozen
    ]
    if trained:
        raise UserError(
            f"data.feature_variants keeps features of a backbone that is not trained, "
            f"but {trained[0]} is; set optimizer.frozen to ('^backbone/',), or "
            f"data.feature_variants to 0."
        )
    if reason := hindrance(config):
        raise UserError(f"{reason}, or data.feature_variants to 0.")


def hindrance(config: ml_collections.ConfigDict) -> str:
    """Why features of this model cannot be kept, and what to set instead, as the
    beginning of a sentence; "" where they can.
    """
    if config.task != "semantic" or config.model.decoder.name in REGION_DECODERS:
        return (
            "data.feature_variants keeps features for pixels that are classified in "
            "pictures; set task to semantic and model.decoder.name to a decoder of "
            "pixels, such as linear"
        )
    if held_back(config):
        return (
            f"data.feature_variants keeps what the whole backbone makes, but "
            f"model.decoder.name={config.model.decoder.name} runs its last blocks; set "
            f"that to linear"
        )
    backbone = config.model.backbone
    if backbone.name != "vit" or backbone.get("pyramid") or backbone.drop_path_rate:
        return (
            "data.feature_variants keeps features of a ViT without pyramid and drop "
            "path; set model.backbone.pyramid to False and "
            "model.backbone.drop_path_rate to 0"
        )
    if backbone.get("positions") == "rotary" and backbone.position_rescale != 1:
        return (
            "data.feature_variants keeps features that are the same in each step, but "
            "model.backbone.position_rescale stretches positions by chance; set that "
            "to 1"
        )
    if config.selection.name == "given":
        return (
            "data.feature_variants reads features in place of pictures, and "
            "selection.name=given needs the labels that come with these; set that to "
            "top_k"
        )
    if config.model.class_embeddings.in_backbone or jax.process_count() > 1:
        return (
            "data.feature_variants needs one process, and class embeddings that do not "
            "pass the backbone (model.class_embeddings.in_backbone=False); set these"
        )
    return ""


def _encoder(model: FunctionalModel, mesh):
    """A jitted function of weights, crops [B H W 3] and their sizes [B 2], what of them
    is no padding, to features [B h w D].
    """

    def encode(weights, images, sizes) -> Array:
        with within(mesh):
            bound = model.bind(weights)
            images = clear_padding(images, sizes, bound.pixel_mean)
            return bound.backbone_features(images).astype(np.float16)

    return jax.jit(encode)


def _crop(config, source, augment, row: int) -> dict:
    index, variant = divmod(row, config.data.feature_variants)
    rng = np.random.default_rng((config.seed, index, variant))
    return augment(source[index], rng)


FREE = ("cache", "num_threads", "num_workers", "path", "classes") + (
    *("eval_split", "eval_examples", "validation_split"),
)
"""Keys of the data that no feature depends on, or only on the files they name."""


def _digest(config, weights, source, workdir: pathlib.Path) -> str:
    """Of all that the features depend on."""
    facts = f"{config.seed} {len(source)} {config.model.dtype}"
    digest = hashlib.sha256(facts.encode())
    for section in (config.data, config.model.backbone):
        facts = section.to_dict()
        for free in FREE:
            facts.pop(free, None)
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for fact in data_facts(config.data, workdir):
        digest.update(fact)
    for path in sorted(weights):
        if path.startswith("backbone/"):
            digest.update(path.encode() + np.asarray(weights[path]).tobytes())
    return digest.hexdigest()


def _open(folder: pathlib.Path, digest: str, arrays: dict) -> list[np.memmap]:
    """Arrays on disk, those that are there, or new ones where something has changed.

    Raises:
      UserError: the disk has no room for them.
    """
    note = folder / "digest"
    folder.mkdir(parents=True, exist_ok=True)
    if not note.exists() or note.read_text() != digest:
        note.unlink(missing_ok=True)  # First, or it might stand beside other arrays.
        for name in arrays:
            (folder / f"{name}.npy").unlink(missing_ok=True)
        needed = sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype in arrays.values()
        )
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"The features need {needed / 1e9:.1f} GB, and the disk of {folder} "
                f"has {free / 1e9:.1f} GB; give a --workdir on a larger one, a smaller "
                f"--config.data.feature_variants, or 0 to keep none."
            )
        for name, (shape, dtype) in arrays.items():
            path = folder / f"{name}.npy"
            np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape).flush()
            if hasattr(os, "posix_fallocate"):  # A full disk would end the process.
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        note.write_text(digest)
    return [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in arrays]
