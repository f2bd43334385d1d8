"""Long work with data says that it moves, to whoever watches for what hangs."""

from collections.abc import Callable

_listener: Callable[[], None] | None = None


def listen(function: Callable[[], None] | None) -> None:
    """``function`` is called, from any thread, at each movement; None ends that."""
    global _listener
    _listener = function


def moves() -> None:
    """Another example was read, or another file has come."""
    if (listener := _listener) is not None:
        listener()
