"""How a run ended the last times, so that it is not started again for ever."""

import contextlib
import json

from etils import epath


def times_in_a_row(workdir: str, process: int, words: str, place: str) -> int:
    """How often a process of the run has ended so, this time included.

    It is kept in ``workdir/failures``; another end in between begins anew.

    Args:
      workdir: of the run.
      process: its index, for each may end in its own way.
      words: of the error.
      place: how far the run was.

    Raises:
      OSError: the work directory cannot be read or written.
    """
    path = epath.Path(workdir) / "failures" / f"process-{process}.json"
    before, now = {}, {"words": words, "place": place}
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        before = json.loads(path.read_text())
    times = 1 + before.pop("times", 0) * (before == now)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now | {"times": times}))
    return times
