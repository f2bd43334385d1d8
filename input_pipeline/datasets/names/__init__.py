"""Classes of the published data sets: ``<list>.txt``, one a line, by class id.

A line is a name, after ``~`` if it is stuff, and where there is a customary palette a
tab and its colour.
"""

import functools
import pathlib

from input_pipeline.info import DatasetInfo

_STUFF = "~"
_WITH_COLOURS = (
    "ade20k",
    "coco_panoptic",
    "coco_stuff",
    "pascal_context",
    "youtube_vis_2019",
)


@functools.cache
def read_info(name: str, list_name: str) -> DatasetInfo:
    """Reads ``<list_name>.txt``."""
    lines = [line.partition("\t")[0] for line in _read_lines(list_name)]
    return DatasetInfo(
        name=name,
        class_names=tuple(line.removeprefix(_STUFF) for line in lines),
        is_thing=tuple(not line.startswith(_STUFF) for line in lines),
    )


def read_numbers(list_name: str) -> list[int]:
    """Reads a list of a whole number a line."""
    return [int(line) for line in _read_lines(list_name)]


def customary_palette(
    class_names: tuple[str, ...],
) -> tuple[tuple[int, int, int], ...] | None:
    """RGB by class id that pictures of these classes usually have, or None.

    Known are ADE20K, COCO-Stuff, COCO panoptic, PASCAL-Context (also without its
    background) and YouTubeVIS 2019; there is none of the larger sets, nor of VSPW.
    """
    return _palettes().get(class_names)


@functools.cache
def _palettes() -> dict[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    palettes = {}
    for list_name in _WITH_COLOURS:
        names = read_info(list_name, list_name).class_names
        colours = tuple(
            tuple(bytes.fromhex(line.partition("\t#")[2]))
            for line in _read_lines(list_name)
        )
        palettes[names] = colours
        if list_name == "pascal_context":
            palettes[names[1:]] = colours[1:]
    return palettes


def _read_lines(list_name: str) -> list[str]:
    path = pathlib.Path(__file__).parent / f"{list_name}.txt"
    return path.read_text(encoding="utf-8").splitlines()
