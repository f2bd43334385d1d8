"""Data sets on object stores: copied to this machine's disk once, and read there.

A training reads every picture many times, most often in another order, and each request
to a store takes as long as decoding a dozen pictures. So ``gs://`` and ``s3://`` work
wherever a directory does, for every layout, at the price of the disk's space.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil

import fsspec
from tqdm import tqdm

from input_pipeline.files import movement
from input_pipeline.info import DataError
from mlseg_jax.errors import pip_install

logger = logging.getLogger("mlseg_jax.data")

EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
"""The extra of this package that reads an address, by what stands before ``://``."""

_FILES_AT_ONCE = 256


def cache_directory(name: str) -> str:
    """Where this package keeps what it can make again."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "mlseg_jax", name)


def is_address(path: str | os.PathLike) -> bool:
    return "://" in os.fspath(path)


@functools.cache
def local_copy(path: str) -> str:
    """A directory as it is, or where the files of an address are on this machine.

    They are copied if they are not there yet. Files of another name, size or version
    make another copy, and one that was broken off is taken up.

    Raises:
      DataError: the store cannot be read, or the disk is too small.
    """
    if not is_address(path):
        return path
    path = path.rstrip("/")
    files, root, store = _list(path)
    digest = hashlib.sha256(json.dumps([path, sorted(files.items())]).encode())
    folder = pathlib.Path(cache_directory("data"), digest.hexdigest()[:16])
    # The readers call a data set by the name of its directory.
    target, part = folder / path.rpartition("/")[2], folder.with_suffix(".part")
    with _alone(folder):
        if not target.exists():
            try:
                _copy(store, root, files, part, path)
            except DataError:
                raise
            except Exception as error:  # Stores raise what they like.
                raise _unreadable(path, error) from error
            part.replace(target)
    return str(target)


def versions(path: str) -> dict[str, tuple[int, str]]:
    """Size and version by name of the files of an address, which is only listed.

    Raises:
      DataError: the store cannot be read, or there are no files.
    """
    return _list(path.rstrip("/"))[0]


def _list(path: str) -> tuple[dict, str, fsspec.AbstractFileSystem]:
    """Size and version by name, what stands before the names, and the store."""
    protocol = path.partition("://")[0]
    try:
        store, root = fsspec.core.url_to_fs(path)
        root = root.rstrip("/") + "/"
        found = store.find(root, detail=True)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        how = pip_install(f"mlseg-jax[{extra}]") if extra else error
        raise DataError(
            f"Reading {path} needs a package that is not installed: {how}."
        ) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    files = {
        name.removeprefix(root): (info["size"], _version(info))
        for name, info in found.items()
        if not name.endswith("/")
    }
    if not files:
        raise DataError(f"There are no files in {path}; correct the address.")
    for name in files:
        if ".." in name.split("/"):
            raise DataError(f"{path} holds {name!r}, which leaves it; remove it.")
    return files, root, store


def _version(info: dict) -> str:
    """Whatever a store says that changes with the content."""
    return str(info.get("etag") or info.get("ETag") or info.get("created") or "")


def _unreadable(path: str, error: Exception) -> DataError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
    return DataError(
        f"{path} cannot be read ({reason}); check the address and the credentials."
    )


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
    """Of several processes on a machine one copies and the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(store, root: str, files: dict, part: pathlib.Path, path: str) -> None:
    """Brings what is not there yet; whole files have the size that they should."""
    missing = {}
    for name, (size, _) in files.items():
        there = part / name
        if not (there.is_file() and there.stat().st_size == size):
            missing[name] = size
    wanted = sum(missing.values())
    free = shutil.disk_usage(part.parent).free
    if wanted > 0.98 * free:
        raise DataError(
            f"{path} takes {wanted / 1e9:.1f} GB on this machine's disk, but "
            f"{part.parent} has {free / 1e9:.1f} GB left; set XDG_CACHE_HOME to a "
            "larger disk, or mount the store and give that directory."
        )
    logger.info(
        "copying %d files (%.1f GB) from %s to %s",
        *(len(missing), wanted / 1e9, path, part.parent),
    )
    names = sorted(missing)
    with tqdm(total=wanted, unit="B", unit_scale=True, mininterval=5.0) as bar:
        for start in range(0, len(names), _FILES_AT_ONCE):
            now = names[start : start + _FILES_AT_ONCE]
            for folder in {(part / name).parent for name in now}:
                folder.mkdir(parents=True, exist_ok=True)
            here = [str(part / name) for name in now]
            store.get([root + name for name in now], here, callback=_Moves())
            bar.update(sum(missing[name] for name in now))


class _Moves(fsspec.callbacks.Callback):
    """Of one transfer: says of each file that it has come."""

    def call(self, *_, **__) -> None:
        movement.moves()
