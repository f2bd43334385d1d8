"""How a run ended the last times, so that it is not started again for ever.

It is kept in ``workdir/failures``, of each process, for each may end in its own way.
"""

import json

from etils import epath


def times_before(workdir: str, process: int, words: str, place: str) -> int:
    """How often in a row the process of that index has ended so.

    Args:
      workdir: of the run.
      process: its index.
      words: of the error.
      place: how far the run was.

    Raises:
      OSError: the work directory cannot be read.
    """
    path = _path(workdir, process)
    last = json.loads(path.read_text()) if path.exists() else {}
    same = (last.get("words"), last.get("place")) == (words, place)
    return last["times"] if same else 0


def remember(workdir: str, process: int, words: str, place: str, times: int) -> None:
    """That it has ended so once more, for the ``times``th time.

    Raises:
      OSError: the work directory cannot be written.
    """
    path = _path(workdir, process)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"words": words, "place": place, "times": times}))


def _path(workdir: str, process: int) -> epath.Path:
    return epath.Path(workdir) / "failures" / f"process-{process}.json"
