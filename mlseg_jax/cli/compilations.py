"""What one call has compiled the next does not compile again."""

import os
import sys
import threading

import jax
from etils import epath

from input_pipeline.files.local_copy import cache_directory

TRYING_SECONDS = 30.0
"""How long a directory may take for a file: a wrong bucket may never answer."""


def keep_compilations(writes: bool = True) -> None:
    """Programs go to ``JAX_COMPILATION_CACHE_DIR``, else to the user's cache.

    ``writes``: false for all but the first of several processes, which only read.
    Where they cannot, a sentence says so, and nothing is kept: JAX would warn of every
    single program.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", cache_directory("xla"))
    path = jax.config.jax_compilation_cache_dir
    if reason := why_not_usable(path, writes):
        jax.config.update("jax_enable_compilation_cache", False)
        print(
            f"Compiled programs cannot be kept in {path} ({reason}), so every start "
            f"compiles anew; let JAX_COMPILATION_CACHE_DIR name a directory that can "
            f"be written, one that all processes share.",
            file=sys.stderr,
            flush=True,
        )


def why_not_usable(path: str, writes: bool) -> str:
    """In words, or nothing where it answers, and where ``writes`` can be written; makes
    the directory then.
    """
    reasons = [f"no answer within {TRYING_SECONDS:.0f} s"]

    def attempt() -> None:
        try:
            directory = epath.Path(path)
            if writes:
                directory.mkdir(parents=True, exist_ok=True)
                trial = directory / f".writable-{os.getpid()}-{os.urandom(4).hex()}"
                trial.write_text("")
                trial.unlink()
            directory.exists()
            reasons[0] = ""
        except Exception as error:  # of a library for object stores, of whatever type
            words = getattr(error, "strerror", None) or str(error) or repr(error)
            reasons[0] = words.strip().splitlines()[0][:200]

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(TRYING_SECONDS)
    return reasons[0]
