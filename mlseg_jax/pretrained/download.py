"""Published weights by name: fetched once, whole and unchanged, into the cache."""

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from input_pipeline.files.local_copy import cache_directory
from mlseg_jax.errors import UserError
from mlseg_jax.runs.progress import progress_bar
from mlseg_jax.settings.arguments import did_you_mean
from mlseg_jax.settings.weights import PUBLISHED, Published

logger = logging.getLogger(__name__)

SILENCE = 30
"""Seconds without an answer after which a try has failed."""

TRIES = 4
_BLOCK = 2**20


def weight_file(given: str) -> str:
    """A path as it is; the file of a name, fetched where it is not here yet.

    Raises:
      UserError: the name is misspelt, or its file cannot be had.
    """
    if given not in PUBLISHED or os.path.exists(given):
        is_name = not os.path.exists(given) and "/" not in given and "." not in given
        if is_name and given:
            raise UserError(
                f"There is neither a file nor a run {given}, nor are there weights of "
                f"that name{did_you_mean(given, PUBLISHED, of_all=False)} `python "
                f"main.py convert --list` names those that are known."
            )
        return given
    return str(fetch(given, PUBLISHED[given]))


def fetch(name: str, source: Published) -> pathlib.Path:
    """The file in the cache; a download that was broken off is taken up.

    Raises:
      UserError: it cannot be had, or is not what it was.
    """
    folder = pathlib.Path(cache_directory("weights"))
    path = folder / f"{name}{pathlib.PurePosixPath(source.address).suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                part = path.with_suffix(f"{path.suffix}.part")
                _download(name, source, part, path)
                _check(name, source, part, path)
                part.replace(path)
    except OSError as error:
        raise UserError(
            f"The weights {name} cannot be kept in {folder} ({error.strerror}); free "
            f"some space there, or set XDG_CACHE_HOME to another disk."
        ) from error
    return path


@contextlib.contextmanager
def _alone(lock: pathlib.Path) -> Iterator[None]:
    """One process at a time; the others find the file there."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(
    name: str, source: Published, part: pathlib.Path, path: pathlib.Path
) -> None:
    logger.info("%s from %s (%s)", name, source.address, source.licence)
    reason = ""
    for attempt in range(TRIES):
        before = _size(part)
        try:
            _continue(source.address, part, name)
            return
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code}"
            if error.code == 416:  # what is here is longer than the file
                part.unlink()
            elif error.code not in (429, 500, 502, 503, 504):
                break
        except (urllib.error.URLError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error)
        except (ConnectionError, TimeoutError) as error:
            reason = str(error) or "the connection broke"
        if _size(part) == before:  # nothing came: wait a little longer each time
            time.sleep(min(0.2 * 4**attempt, 5.0))
    raise UserError(
        f"The weights {name} cannot be fetched from {source.address} ({reason}); fetch "
        f"that file by other means and put it at {path}, or try again: what is here "
        f"already is kept."
    )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(address: str, part: pathlib.Path, name: str) -> None:
    """Fetches what is missing of a file; raises where the connection ends before it."""
    have = _size(part)
    headers = {"User-Agent": "mlseg_jax"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        if have and answer.status != 206:
            have = 0  # The server sends all of it once more.
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            part.open("ab" if have else "wb") as file,
            progress_bar((total or 0) // _BLOCK, have // _BLOCK, name) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                have += len(block)
                bar.update(have // _BLOCK - bar.n)
    if total is not None and have < total:
        raise ConnectionError(f"only {have:,} of {total:,} bytes came")


def _check(name: str, source: Published, part: pathlib.Path, path: pathlib.Path):
    """Compares with what its authors say, else with what came the first time."""
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    record = path.with_suffix(".sha256")
    known = source.sha256 or (record.read_text().strip() if record.exists() else "")
    if not found.startswith(known):
        part.unlink()
        raise UserError(
            f"The file of {name} at {source.address} has the SHA-256 {found[:16]}..., "
            f"not {known[:16]}...: it was changed, or something on the way changed it; "
            f"nothing was kept. If the new one is right, remove {record}."
        )
    record.write_text(found + "\n")


def table() -> str:
    """All names, what they fit and where they are from."""
    rows = [("name", "licence", "for", "weights of", "address")]
    rows += [(n, p.licence, p.fits, p.note, p.address) for n, p in PUBLISHED.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(x.ljust(w) for x, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )
