"""Class names of the published data sets: ``<list>.txt``, one a line, by class id."""

import pathlib

from input_pipeline.datasets.info import DatasetInfo

_STUFF = "~"


def read_info(name: str, list_name: str) -> DatasetInfo:
    """Reads ``<list_name>.txt``, in which a leading ``~`` marks stuff."""
    text = (pathlib.Path(__file__).parent / f"{list_name}.txt").read_text("utf-8")
    lines = text.splitlines()
    return DatasetInfo(
        name=name,
        class_names=tuple(line.removeprefix(_STUFF) for line in lines),
        is_thing=tuple(not line.startswith(_STUFF) for line in lines),
    )
