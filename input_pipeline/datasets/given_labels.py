"""Label scores of a frozen classifier, beside every example of a split.

A folder of scores holds for each split ``SPLIT.npy``, float32 [N C] (a row is read when
it is needed, the file never as a whole), and ``SPLIT.json``: the names of the N
examples and of the C classes, and what the scores are of.
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from input_pipeline.info import DataError, DatasetInfo
from mlseg_jax.typing import Float


class LabelScoreFile:
    """Scores of the examples of a split, by name."""

    def __init__(self, folder: str, split: str, info: DatasetInfo):
        """Reads the names.

        Raises:
          DataError: there is no such file, or it is of other classes.
        """
        facts = read_facts(folder, split)
        if facts is None:
            raise DataError(
                f"There are no label scores of the split {split!r} in {folder}; write "
                f"them: python main.py predict --workdir=CLASSIFIER --scores={folder}"
            )
        if tuple(facts["classes"]) != info.class_names:
            raise DataError(
                f"The label scores in {folder} are of other classes than the data set "
                f"{info.name!r} has; use a classifier that was trained on its classes."
            )
        self.path = f"{folder}/{split}.npy"
        self._rows = {name: row for row, name in enumerate(facts["names"])}
        self._scores = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict:
        """Without the open file, which would be pickled as a whole."""
        return self.__dict__ | {"_scores": None}

    def of(self, name: str) -> Float[np.ndarray, "C"]:
        """The scores of an example, before the sigmoid.

        Raises:
          DataError: there are no scores of this example.
        """
        if name not in self._rows:
            raise DataError(
                f"{self.path} has no scores of the example {name!r}; write the scores "
                f"of this data set, or delete the file."
            )
        if self._scores is None:
            self._scores = np.load(self.path, mmap_mode="r")
        return np.array(self._scores[self._rows[name]])


class WithGivenLabels:
    """A source whose examples also have ``given`` float32 [C], scores to select by."""

    def __init__(self, source, folder: str, split: str):
        self.info = source.info
        self._source = source
        self._scores = LabelScoreFile(folder, split, source.info)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def num_scored(self) -> int:
        """Examples that there are scores of."""
        return len(self._scores)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        return {**example, "given": self._scores.of(example["name"])}


def read_facts(folder: str, split: str) -> dict | None:
    """What is in ``SPLIT.json``; None where the scores are not (all) there."""
    path = epath.Path(folder) / f"{split}.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:  # cut off
        return None


def write_scores(
    folder: str,
    split: str,
    info: DatasetInfo,
    count: int,
    batches: Iterable[tuple[Sequence[str], Float[np.ndarray, "n C"]]],
    **facts: str,
) -> None:
    """Writes names and scores of up to ``count`` examples as they come.

    ``facts`` are kept beside the names. Earlier scores are replaced once all are there.
    The names are written last: without them there are no scores.
    """
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    part = path / f"{split}.npy.part"
    shape = (count, info.num_classes)
    scores = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    names = []
    for new, rows in batches:
        scores[len(names) : len(names) + len(new)] = rows
        names += new
    scores.flush()
    facts |= {"classes": info.class_names, "names": names}
    names_part = path / f"{split}.json.part"
    names_part.write_text(json.dumps(facts))
    (path / f"{split}.json").unlink(missing_ok=True)
    part.replace(path / f"{split}.npy")
    names_part.replace(path / f"{split}.json")
