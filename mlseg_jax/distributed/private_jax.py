"""All that is taken from JAX's private modules; nobody else imports ``jax._src``.

JAX has no public way to ask who is connected before it looks for devices, nor one for
processes to pass each other words; Orbax takes the same object. A JAX that has moved it
still trains in one process; where there are several, `check` says so.
"""

import dataclasses
import importlib
from typing import Any

import jax

from mlseg_jax.errors import UserError

MODULE = "jax._src.distributed"
FIELDS = ("client", "num_processes", "process_id")
CALLS = (
    "blocking_key_value_get", "key_value_dir_get", "key_value_set", "key_value_try_get",
    "wait_at_barrier",
)  # fmt: skip
"""Of the client, once there is one."""
STOP_KEY = "RECEIVED_PREEMPTION_NOTICE"
"""Under which JAX tells all processes that one of them has got a SIGTERM. Another name
only means that an evaluation is not broken off, and the stop comes after it."""


@dataclasses.dataclass(frozen=True)
class _Alone:
    """In place of JAX's state where that is not found: one process, no client."""

    client: Any = None
    num_processes: int = 1
    process_id: int = 0


def find_state():
    """JAX's own state of the connection: ``client``, ``num_processes``, ``process_id``,
    all None before JAX's ``initialize``.
    """
    try:
        state = importlib.import_module(MODULE).global_state
    except (ImportError, AttributeError):
        return _Alone()
    return state if all(hasattr(state, field) for field in FIELDS) else _Alone()


global_state = find_state()


def own_port() -> int | None:
    """Where process 0 waits for the others, from the beginning of JAX's ``initialize``;
    None elsewhere.
    """
    address = getattr(global_state, "coordinator_address", None) or ""
    port = address.rpartition(":")[2]
    return int(port) if port.isdigit() and global_state.process_id == 0 else None


def check() -> None:
    """After JAX's ``initialize``, whether the processes can hear each other.

    Raises:
      UserError: this JAX has moved what they need.
    """
    client = global_state.client
    missing = [f".client.{name}" for name in CALLS if not hasattr(client, name)]
    if isinstance(global_state, _Alone):
        missing = [""]
    if missing:
        raise UserError(
            f"JAX {jax.__version__} has no {MODULE}.global_state{missing[0]}, by which "
            f"the processes of a run hear each other; install a JAX of the range in "
            f"requirements.txt, or train in one process."
        )
