"""The classes of the semantic data sets, counted and named as published."""

import pytest

from input_pipeline.datasets import names
from input_pipeline.preparation import builders


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("ade20k", 150, {0: "wall", 12: "person", 149: "flag", 114: "tent"}),
        ("ade20k_full", 847, {0: "wall", 2: "sky", 500: "cat", 845: "towel rail"}),
        ("coco_stuff", 171, {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("pascal_context/60", 60, {0: "background", 1: "aeroplane", 59: "wood"}),
        ("pascal_context/59", 59, {0: "aeroplane", 36: "person", 58: "wood"}),
    ],
)
def test_class_names(tmp_path, name, count, some):
    info = builders.make_builder(name, tmp_path).class_info()
    assert info.num_classes == len(set(info.class_names)) == count
    assert {i: info.class_names[i] for i in some} == some
    assert all(text and text == text.strip() for text in info.class_names)


def test_things_are_as_many_as_published(tmp_path):
    def things(name):
        return sum(builders.make_builder(name, tmp_path).class_info().is_thing)

    assert things("ade20k") == 100 and things("coco_stuff") == 80
    assert things("pascal_context/60") == things("pascal_context/59") == 20
    ids = names.read_numbers("ade20k_full_object_ids")
    assert len(set(ids)) == 847 and min(ids) == 6 and max(ids) == 3156
