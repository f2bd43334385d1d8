"""One training at a time in a work directory."""

import contextlib
import errno
import pathlib

import jax

from mlseg_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "training.lock"

HELD = (errno.EACCES, errno.EAGAIN)
"""How a lock of another process shows itself; any other error is of a file system that
has none.
"""


class SoleTraining:
    """The right to train in ``workdir``, from `take` to the end of the block.

    It is a lock of the operating system's, so that it ends with its process, however
    that ends, and a file that was left behind stops nobody. Of many processes the first
    one has it. It tells processes apart and not threads: whoever has it may take it
    again (`fitting` does, around the training), and the first such end gives it back.
    Where there are no such locks (object stores, some file systems) nothing is checked.
    """

    def __init__(self, workdir: str):
        self._path = pathlib.Path(workdir) / NAME
        self._is_local = fcntl is not None and "://" not in workdir
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> "SoleTraining":
        return self

    def __exit__(self, *_) -> None:
        self._opened.close()

    def take(self) -> None:
        """Makes the directory where it can.

        Raises:
          UserError: another process trains in it.
        """
        if not self._is_local or jax.process_index():
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._opened.enter_context(self._path.open("a"))
        except OSError:
            return  # `claim_workdir` says what cannot be written.
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise UserError(
                    f"Another process is training in {self._path.parent}; wait until "
                    f"it ends, stop it, or choose another --workdir."
                ) from error
