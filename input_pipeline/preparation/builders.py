"""The published data sets that can be prepared."""

from __future__ import annotations

import importlib
import os
import typing
from collections.abc import Mapping, Sequence

from etils import epath

from input_pipeline.info import DataError

# For types only: whoever lists the names need not wait for TFDS.
if typing.TYPE_CHECKING:
    from input_pipeline.preparation.prepared import RawExample, SegmentationBuilder

BUILDERS = {
    "ade20k": "input_pipeline.datasets.ade20k:Ade20k",
    "ade20k_full": "input_pipeline.datasets.ade20k_full:Ade20kFull",
    "ade20k_panoptic": "input_pipeline.datasets.ade20k_panoptic:Ade20kPanoptic",
    "coco_lvis": "input_pipeline.datasets.coco_lvis:CocoLvis",
    "coco_panoptic": "input_pipeline.datasets.coco_panoptic:CocoPanoptic",
    "coco_stuff": "input_pipeline.datasets.coco_stuff:CocoStuff",
    "pascal_context": "input_pipeline.datasets.pascal_context:PascalContext",
    "vspw": "input_pipeline.datasets.vspw:Vspw",
    "youtube_vis_2019": "input_pipeline.datasets.youtube_vis:YoutubeVis2019",
}
"""Module and class of each builder; variants follow a slash: ``coco_stuff/164k``."""


def make_builder(name: str, data_dir: str | os.PathLike) -> SegmentationBuilder:
    """The builder of a row of BUILDERS, perhaps with a variant after a slash."""
    base, _, variant = name.partition("/")
    if base not in BUILDERS:
        raise DataError(
            f"There is no builder for the data set {base!r}; choose one of "
            f"{', '.join(sorted(BUILDERS))}."
        )
    module, _, class_name = BUILDERS[base].partition(":")
    builder_class = getattr(importlib.import_module(module), class_name)
    known = [config.name for config in builder_class.BUILDER_CONFIGS]
    if variant and variant not in known:
        raise DataError(
            f"Data set {base!r} has no variant {variant!r}; choose one of "
            f"{', '.join(known) or 'none'}."
        )
    kwargs = {"config": variant} if variant else {}
    return builder_class(data_dir=data_dir, file_format="array_record", **kwargs)


def find_prepared(name: str, data_dir: str | os.PathLike) -> epath.Path:
    """Where `prepare` put, or would put, a data set."""
    return epath.Path(make_builder(name, data_dir).data_dir)


def count_message(
    builder: SegmentationBuilder, splits: Mapping[str, Sequence[RawExample]]
) -> str:
    """How the numbers of examples differ from the published ones; "" if they agree."""
    parts = [
        f"{len(splits.get(split, ())):,} of {count:,} {split} examples"
        for split, count in builder.expected_examples().items()
        if len(splits.get(split, ())) != count
    ]
    return f"This copy of {builder.name} has {' and '.join(parts)}" if parts else ""
