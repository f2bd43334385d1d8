"""Label scores on disk: earlier ones stay until new ones are all there."""

import numpy as np
import pytest

from input_pipeline.datasets.given_labels import (
    LabelScoreFile,
    read_facts,
    write_scores,
)
from input_pipeline.info import DataError, DatasetInfo

INFO = DatasetInfo("made up", ("a", "b", "c"), (False,) * 3)


def rows(*best, fail=False):
    for i, class_id in enumerate(best):
        scores = np.zeros((1, 3), np.float32)
        scores[0, class_id] = 1.0
        yield [f"x{i}"], scores
    if fail:
        raise DataError("x2 cannot be read")


def best(file):
    return [int(file.of(name).argmax()) for name in ("x0", "x1")]


def test_what_fails_leaves_what_was(tmp_path):
    folder = str(tmp_path)
    write_scores(folder, "val", INFO, 2, rows(2, 1))
    before = LabelScoreFile(folder, "val", INFO)
    assert best(before) == [2, 1]
    with pytest.raises(DataError, match="x2 cannot be read"):
        write_scores(folder, "val", INFO, 3, rows(0, 0, fail=True))
    after = LabelScoreFile(folder, "val", INFO)
    assert best(after) == [2, 1]
    write_scores(folder, "val", INFO, 2, rows(0, 0))
    new = LabelScoreFile(folder, "val", INFO)
    assert best(new) == [0, 0]
    assert best(before) == [2, 1]  # who has it open reads on
    assert {p.name for p in tmp_path.iterdir()} == {"val.npy", "val.json"}


@pytest.mark.parametrize("keep", [0, 1, 20])
def test_names_that_are_cut_off_are_none(tmp_path, keep):
    write_scores(str(tmp_path), "val", INFO, 2, rows(2, 1))
    text = (tmp_path / "val.json").read_text()
    (tmp_path / "val.json").write_text(text[:keep])
    assert read_facts(str(tmp_path), "val") is None
    with pytest.raises(DataError, match="There are no label scores"):
        LabelScoreFile(str(tmp_path), "val", INFO)
