"""What was done of a video so far, on disk: a line for each frame, and how many count.

``labels.jsonl`` grows by the lines of some frames at a time; ``video.json`` says how
much of it counts, and of which video, model and settings it is. It is replaced after
the lines and all files that they name are written. So whatever is killed goes on where
it was: lines beyond are dropped, and no frame is there twice.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from mlseg_jax.errors import UserError
from mlseg_jax.prediction.files import LABELS

RECORD, LABEL_MAPS, OVERLAY = "video.json", "label_maps", "overlay.mp4"


class VideoRecord:
    """The folder of one video's results.

    Args:
      folder: it is made if it is not there.
      job: what tells these results from others; JSON.

    Attributes:
      num_frames: done so far.
      following: index of the first frame in the video that was not looked at.
      memory: what the next frames depend on beside the lines, while not all is done
        (`segmenter.Segmenter.video_memory`).
      problems: sentences about what could not be read; filled by `finish`.
      complete: whether all was done.

    Raises:
      UserError: the folder has results of another job.
    """

    def __init__(self, folder: epath.Path, job: dict):
        if "://" in os.fspath(folder):
            raise UserError(
                f"The results of a video grow frame by frame, which {folder} does not "
                f"let them; give a local directory as --output and copy it afterwards."
            )
        self.folder, self._job = folder, json.loads(json.dumps(job))
        self.num_frames = self.following = self._bytes = 0
        self.problems: list[str] = []
        self.memory: dict[str, np.ndarray] = {}
        self.complete = False
        (folder / LABEL_MAPS).mkdir(parents=True, exist_ok=True)
        if (folder / RECORD).exists():
            self._take_up()
        elif (folder / LABELS).exists() or any((folder / LABEL_MAPS).iterdir()):
            raise UserError(
                f"{folder} holds results of another call; choose another --output, or "
                f"remove them."
            )
        else:  # Before any label map: a kill leaves nothing that nobody knows.
            self._save()

    def _take_up(self) -> None:
        path = self.folder / RECORD
        try:
            known = json.loads(path.read_text())
            job = known["job"]
            if memory := known.get("memory"):
                with np.load(self.folder / memory) as arrays:
                    self.memory = dict(arrays)
            lines = self.folder / LABELS
            if known["frames"] and lines.stat().length < known["bytes"]:
                raise ValueError("lines that count are lost")
        except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
            raise UserError(
                f"{path} is damaged; choose another --output, or remove {self.folder}."
            ) from None
        nothing = not (known["frames"] or known["complete"])
        if nothing and not any((self.folder / LABEL_MAPS).iterdir()):
            self._save()
        elif job != self._job:
            keys = {*job, *self._job}
            differ = sorted(k for k in keys if job.get(k) != self._job.get(k))
            raise UserError(
                f"{self.folder} holds results of another call (other "
                f"{', '.join(differ)}); choose another --output, or remove it."
            )
        self.num_frames, self.following = known["frames"], known["following"]
        self._bytes, self.problems = known["bytes"], known["problems"]
        self.complete = known["complete"]
        if self.num_frames:
            os.truncate(self.folder / LABELS, self._bytes)

    def add(
        self,
        lines: Sequence[dict],
        following: int,
        memory: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Counts frames whose files are written; ``following``: the next of all."""
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        mode = "ab" if self.num_frames else "wb"
        with open(self.folder / LABELS, mode) as file:
            file.write(data)
        self._bytes += len(data)
        self.num_frames += len(lines)
        self.following, self.memory = following, dict(memory or {})
        self._save()

    def finish(self, problems: Sequence[str]) -> None:
        """Says that all was done that can be."""
        self.problems, self.complete, self.memory = list(problems), True, {}
        self._save()

    def _save(self) -> None:
        # Beside the old one, which counts until the record is replaced.
        memory = f"memory_{self.following}.npz" if self.memory else ""
        if memory:
            with open(self.folder / memory, "wb") as file:
                np.savez(file, **self.memory)
        state = {
            "job": self._job,
            "frames": self.num_frames,
            "following": self.following,
            "bytes": self._bytes,
            "complete": self.complete,
            "problems": self.problems,
            "memory": memory,
        }
        new = self.folder / f"{RECORD}.new"
        new.write_text(json.dumps(state, indent=1) + "\n")
        new.replace(self.folder / RECORD)
        for path in self.folder.glob("memory_*.npz"):
            if path.name != memory:
                path.unlink()

    def lines(self) -> Iterator[dict]:
        """What was written of each frame, in order."""
        if not self.num_frames:
            return
        with contextlib.closing((self.folder / LABELS).open()) as file:
            for line in file:
                yield json.loads(line)
