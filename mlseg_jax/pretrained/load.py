"""From a weight file to the parameters of a configured model, strictly."""

import dataclasses
import re
from collections.abc import Collection

import jax
import ml_collections
import numpy as np

from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel, initial_parameters
from mlseg_jax.pretrained.fit import Fitter
from mlseg_jax.pretrained.format import Arrays, Format
from mlseg_jax.pretrained.mapping import to_ours

_BLOCK = re.compile(r"(.*blocks)/(\d+)/(.*)")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a file gave.

    Attributes:
      arrays: float32, by our paths.
      fresh: paths that the file gave nothing for.
      dropped: the file's names that were not used, with the reason.
      notes: what was made to fit.
    """

    arrays: dict[str, np.ndarray]
    fresh: tuple[str, ...]
    dropped: dict[str, str]
    notes: tuple[str, ...]


def unscanned(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same model with each block's weights apart, as all files have them."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "scan" in config.model.backbone:
            config.model.backbone.scan = False
    return config


def with_facts(
    config: ml_collections.ConfigDict, source: Format, part: str = ""
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """The configuration with what the source computes with, and notes of changes.

    ``part``: beginning of the paths that are taken, whose facts alone count.
    """
    config = config.copy_and_resolve_references()
    flat, notes = config.to_dict(), []
    for key, value in source.facts.items():
        if not key.removeprefix("model.").replace(".", "/").startswith(part):
            continue
        node = flat
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        if node is not None and node != value:
            notes.append(f"{key} becomes {value}, as the source has it (was {node})")
            with config.unlocked():
                config.update_from_flattened_dict({key: value})
    return config, notes


def load_arrays(
    config: ml_collections.ConfigDict,
    num_classes: int,
    source: Format,
    arrays: Arrays,
    *,
    part: str = "",
) -> Loaded:
    """Maps, checks and makes fit; ``part`` takes only paths that begin so.

    Raises:
      UserError: the arrays do not fit the configuration; all problems are named.
    """
    config = unscanned(config)
    model = FunctionalModel.build(config, num_classes)
    shapes = {path: leaf.shape for path, leaf in model.shapes.items()}
    part = part or source.part
    wanted = {path: shape for path, shape in shapes.items() if path.startswith(part)}
    if not wanted:
        raise UserError(f"No part of the model begins with {part!r}; see summary.")
    fitter = Fitter(config, num_classes, shapes)
    mapped = to_ours(
        arrays,
        source.rows(config),
        wanted,
        part=part,
        dropped=source.dropped,
        optional=source.optional,
        may_differ=fitter.may_differ,
    )
    fitted = fitter.fit(mapped.arrays)
    return Loaded(
        {path: np.asarray(array, np.float32) for path, array in fitted.items()},
        tuple(path for path in shapes if path not in fitted),
        mapped.dropped,
        tuple(fitter.notes),
    )


def complete(
    config: ml_collections.ConfigDict, num_classes: int, loaded: Loaded
) -> Arrays:
    """All parameters in the configuration's layout; new ones for what is missing."""
    arrays = dict(loaded.arrays)
    if loaded.fresh:
        config = unscanned(config)

        def make():
            learned, measured = initial_parameters(
                config, num_classes, jax.random.key(config.seed)
            )
            everything = learned | measured
            return {path: everything[path] for path in loaded.fresh}

        arrays |= jax.device_get(jax.jit(make)())
    return arrays


def stack_blocks(arrays: Arrays, paths: Collection[str]) -> Arrays:
    """Blocks apart to one array with a leading axis, where ``paths`` have it so."""
    stacks, result = {}, {}
    for path, array in arrays.items():
        match = None if path in paths else _BLOCK.fullmatch(path)
        if match is None:
            result[path] = array
        else:
            stacked = f"{match[1]}/{match[3]}"
            stacks.setdefault(stacked, {})[int(match[2])] = array
    for path, blocks in stacks.items():
        result[path] = np.stack([blocks[i] for i in range(len(blocks))])
    return result


def unstack_blocks(arrays: Arrays, paths: Collection[str]) -> Arrays:
    """The reverse: every array as one of ``paths``."""
    result = {}
    for path, array in arrays.items():
        if path in paths:
            result[path] = array
            continue
        head, _, tail = path.rpartition("blocks/")
        for i, block in enumerate(array):
            result[f"{head}blocks/{i}/{tail}"] = block
    return result
