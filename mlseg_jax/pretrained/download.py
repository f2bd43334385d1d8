"""Published weights by name: fetched once, whole and unchanged, into the cache."""

import contextlib
import fcntl
import hashlib
import http.client
import json
import logging
import os
import pathlib
import re
import ssl
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
"""One after the other that bring nothing."""

_BLOCK = 2**20

DINOV3 = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads"
GATED = re.compile(r"dinov3[a-z0-9_-]*")
"""Names of weights that no address gives to everyone."""


def weight_file(given: str) -> str:
    """A path as it is; the file of a name, fetched where it is not here yet.

    Raises:
      UserError: the name is misspelt, or its file cannot be had.
    """
    if given not in PUBLISHED or os.path.exists(given):
        gated = GATED.fullmatch(os.path.basename(given))
        if gated and not os.path.exists(given):
            raise UserError(
                f"There is no file {given}, and weights of DINOv3 come only to those "
                f"who accept their licence: ask for them at {DINOV3}, put the file "
                f"(.pth or .safetensors) anywhere, and give its path, not a name."
            )
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
            if path.exists():
                _compare(name, source, path)
            else:
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
    reason, attempt, most = "", 0, _size(part)
    while attempt < TRIES:
        attempt += 1
        try:
            _continue(source.address, part, name)
            return
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code}"
            if error.code == 416:  # nothing comes after what is here
                if _is_whole(error, part):
                    return
                part.unlink(missing_ok=True)
            elif error.code not in (429, 500, 502, 503, 504):
                break
        except (urllib.error.URLError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error)
        except (ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(error) or "the connection broke"
        if _size(part) > most:  # more than ever
            most, attempt = _size(part), 0
        else:  # wait a little longer each time
            time.sleep(min(0.05 * 4**attempt, 5.0))
    raise UserError(
        f"The weights {name} cannot be fetched from {source.address} ({reason}); fetch "
        f"that file by other means and put it at {path}, or try again: what is here "
        f"already is kept."
    )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _origin(part: pathlib.Path) -> pathlib.Path:
    """Says which version of a file a part is of, and how long all of it is."""
    return part.with_suffix(f"{part.suffix}.json")


def _is_whole(error: urllib.error.HTTPError, part: pathlib.Path) -> bool:
    """Whether a server that has no more to send means that all is here."""
    total = error.headers.get("Content-Range", "").removeprefix("bytes */")
    return total == str(_size(part)) and _size(part) > 0


def _continue(address: str, part: pathlib.Path, name: str) -> None:
    """Fetches what is missing of a file; raises where the connection ends before it.

    A part is gone on with where it is of the same version, as the server says it
    (``If-Range``), and the rest fits to it; else all begins anew.
    """
    have, known = _size(part), {}
    if have and _origin(part).exists():
        known = json.loads(_origin(part).read_text())
    headers = {"User-Agent": "mlseg_jax"}
    if known:
        headers["Range"] = f"bytes={have}-"
        if known["version"]:
            headers["If-Range"] = known["version"]
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        length = answer.headers.get("Content-Length")
        if known and answer.status == 206:
            span = f"bytes {have}-{known['total'] - 1}/{known['total']}"
            if answer.headers.get("Content-Range") != span:
                part.unlink()
                raise ConnectionError("the server sent another part than was asked for")
            total = known["total"]
        else:  # The server sends all of it.
            have, total = 0, None if length is None else int(length)
            _origin(part).unlink(missing_ok=True)
            if total is not None:
                origin = {"version": _version(answer.headers), "total": total}
                _origin(part).write_text(json.dumps(origin))
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


def _version(headers) -> str:
    """What a server calls this version of a file; "" where it says nothing exact."""
    tag = headers.get("ETag", "")
    is_exact = tag and not tag.startswith("W/")
    return tag if is_exact else headers.get("Last-Modified", "")


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _recorded(path: pathlib.Path) -> list[str]:
    """The SHA-256 that a file had, its bytes then, and when it was written."""
    record = path.with_suffix(".sha256")
    return record.read_text().split() if record.exists() else []


def _record(path: pathlib.Path, file: pathlib.Path, digest: str) -> None:
    path.with_suffix(".sha256").write_text(" ".join([digest, *_state(file)]) + "\n")


def _state(file: pathlib.Path) -> list[str]:
    found = file.stat()
    return [str(found.st_size), str(found.st_mtime_ns)]


def _compare(name: str, source: Published, path: pathlib.Path) -> None:
    """Holds a file that is here to what is known of it; reads it only where it is of
    another size or time than when it was read last.

    Raises:
      UserError: it is another one.
    """
    digest, *state = _recorded(path) or [""]
    if state == _state(path):
        return
    found, known = _digest(path), source.sha256 or digest
    if not found.startswith(known):
        raise UserError(
            f"The file of {name} at {path} has the SHA-256 {found[:16]}..., not "
            f"{known[:16]}...: it was changed, or is not whole; remove it to have it "
            f"fetched again."
        )
    _record(path, path, found)


def _check(name: str, source: Published, part: pathlib.Path, path: pathlib.Path):
    """Compares with what its authors say, else with what came the first time."""
    found, record = _digest(part), path.with_suffix(".sha256")
    known = source.sha256 or (_recorded(path) or [""])[0]
    _origin(part).unlink(missing_ok=True)
    if not found.startswith(known):
        part.unlink()
        raise UserError(
            f"The file of {name} at {source.address} has the SHA-256 {found[:16]}..., "
            f"not {known[:16]}...: it was changed, or something on the way changed it; "
            f"nothing was kept. If the new one is right, remove {record}."
        )
    _record(path, part, found)


def table() -> str:
    """All names, what they fit and where they are from."""
    rows = [("name", "licence", "for", "weights of", "address")]
    rows += [(n, p.licence, p.fits, p.note, p.address) for n, p in PUBLISHED.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(x.ljust(w) for x, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )
