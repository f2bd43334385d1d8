"""Cells of a study: one row, size, budget and seed each, finished once and for all.

A finished cell is a small JSON file that is committed: its configuration, its scores on
the validation split, counts of pixels and what it cost, but no weights. Whoever goes on
with the study takes these files up, so nothing runs twice.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_collections

from mlseg_jax.errors import UserError
from mlseg_jax.runs.checkpoint import without_nan
from mlseg_jax.runs.workdir import FREE_TO_CHANGE
from mlseg_jax.settings.resolve import PATHS, resolve


class Cell(NamedTuple):
    size: str
    budget: str
    row: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file and of its run, below a folder."""
        return f"{self.size}_{self.budget}/{self.row}_{self.seed}"

    @property
    def argument(self) -> str:
        """What stands after the colon of the study's configuration file."""
        return f"row={self.row},size={self.size},budget={self.budget},seed={self.seed}"


def flat_values(config: ml_collections.ConfigDict) -> dict[str, object]:
    """The values of a configuration by dotted key, as JSON has them, without places on
    a machine.
    """
    resolved = resolve(config, config.data.num_classes)
    values = json.loads(resolved.to_json_best_effort())
    flat = dict(_leaves(values, ""))
    return {key: value for key, value in flat.items() if key not in PATHS}


def _leaves(values: Mapping, path: str) -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _changed(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Keys with another value. Those that the program did not have then do not count:
    such a switch is off by default.
    """
    return [key for key in then if key in now and then[key] != now[key]]


def check_run(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where a run was trained with other values than ``config``, of
    those that change what comes out.
    """
    then = dict(_leaves(json.loads((folder / "config.json").read_text()), ""))
    now = without_nan(flat_values(config))
    for key in _changed(then, now):
        if any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE):
            continue
        raise UserError(
            f"{folder} was trained with {key}={then[key]!r}, and the study says "
            f"{now[key]!r} now; give the changed row another name, or delete the "
            f"folder if it is to run again."
        )


def digest(values: Mapping[str, object]) -> str:
    """Twelve letters that stand for all values of a configuration."""
    text = json.dumps(dict(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class CellFiles:
    """The committed files of finished cells in a folder."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)

    def path(self, cell: Cell, *, test: bool = False) -> pathlib.Path:
        ending = ".test.json" if test else ".json"
        return self.folder / f"{cell.name}{ending}"

    def read(
        self, cell: Cell, config: ml_collections.ConfigDict, *, test: bool = False
    ) -> dict | None:
        """A finished cell, None where it is not finished.

        Raises:
          UserError: the cell was run with other values than ``config`` has.
        """
        path = self.path(cell, test=test)
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            then = found["configuration"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is no cell of a study; delete it.") from error
        now = flat_values(config)
        if changed := _changed(then, now):
            key = changed[0]
            raise UserError(
                f"{path} was run with {key}={then[key]!r}, and the study says "
                f"{now[key]!r} now; give the changed row another name, or delete the "
                f"file and {cell.name} of the work directory if it is to run again."
            )
        return found

    def write(self, cell: Cell, found: Mapping, *, test: bool = False) -> None:
        """All or nothing, so that a kill leaves no half of a file."""
        path = self.path(cell, test=test)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()]
        partial = path.with_suffix(".partial")
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        os.replace(partial, path)
