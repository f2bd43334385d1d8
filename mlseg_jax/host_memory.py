"""What the C library does with memory that XLA gives back on CPU."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Numbers of ``mallopt`` (malloc.h of glibc)."""


def keep_freed_memory() -> None:
    """Freed memory stays with this process; call it before any thread starts.

    On CPU, XLA allocates the temporaries of a program anew each time it runs. For a
    training step that is a gigabyte, which glibc would return to the system and the
    system clear page by page in the next step: a tenth of the step's time. Nothing
    happens where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, grown in place and never trimmed: others map large blocks one by one.
    for option, value in (
        (_ARENA_MAX, 1),
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
    ):
        mallopt(option, value)
