"""Class names of the published data sets: ``<list>.txt``, one a line, by class id."""

import functools
import pathlib

from input_pipeline.datasets.info import DatasetInfo

_STUFF = "~"


@functools.cache
def read_info(name: str, list_name: str) -> DatasetInfo:
    """Reads ``<list_name>.txt``, in which a leading ``~`` marks stuff."""
    lines = _read_lines(list_name)
    return DatasetInfo(
        name=name,
        class_names=tuple(line.removeprefix(_STUFF) for line in lines),
        is_thing=tuple(not line.startswith(_STUFF) for line in lines),
    )


def read_numbers(list_name: str) -> list[int]:
    """Reads a list of a whole number a line."""
    return [int(line) for line in _read_lines(list_name)]


def _read_lines(list_name: str) -> list[str]:
    path = pathlib.Path(__file__).parent / f"{list_name}.txt"
    return path.read_text(encoding="utf-8").splitlines()
