"""Keeping what compilers and drivers say to themselves off the screen."""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def quiet():
    """Drops what C++ code writes; exceptions still carry what went wrong."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as sink:
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in enumerate(saved, start=1):
                os.dup2(copy, target)
                os.close(copy)
