"""What the server does with pictures, whatever brings them."""

import base64
import collections
import contextlib
import dataclasses
import io
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from input_pipeline.files.images import ReadOptions, image_from_bytes, open_picture
from input_pipeline.info import DataError
from mlseg_jax.export.predictor import Predictor, Result, Seen
from mlseg_jax.export.resampling import sigmoid
from mlseg_jax.serving.choice import Choice
from mlseg_jax.serving.problems import RequestProblem
from mlseg_jax.typing import UInt, UInt8

OTHERS = 40
"""Labels after the selected ones that a page is told of."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      bytes: of a picture's file; pixels: of a picture.
      workers: requests that are computed at a time.
      queue: requests that may wait for that; each_client: of one address.
      wait: seconds that a request may wait.
      kept_bytes, kept: of pictures whose encoding is kept.
    """

    bytes: int = 32 * 2**20
    pixels: int = 2**25
    workers: int = 1
    queue: int = 64
    each_client: int = 32
    wait: float = 30.0
    kept_bytes: int = 2**29
    kept: int = 64


class Service:
    """A model, the pictures it has seen last, and a queue before it."""

    def __init__(
        self,
        predictor: Predictor,
        usual: int,
        limits: Limits | None = None,
        examples: Sequence[bytes] = (),
    ):
        """``usual``: labels that are selected unless a request says otherwise;
        ``examples``: JPEG files for those who have no picture at hand.
        """
        self.predictor = predictor
        self.examples = list(examples)
        self.usual = usual
        self.limits = limits or Limits()
        self.names = predictor.names
        self.done = 0
        self._kept: collections.OrderedDict[str, Seen] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._workers = threading.Semaphore(self.limits.workers)
        self._waiting: collections.Counter[str] = collections.Counter()

    # ------------------------------------------------------------------- pictures

    def look(self, data: bytes, client: str) -> tuple[Seen, dict[str, float]]:
        """A picture's encoding, and milliseconds of its parts."""
        start = time.perf_counter()
        with self._turn(client):
            waited = time.perf_counter()
            image = self._read(data)
            read = time.perf_counter()
            seen = self.predictor.look(image)
        times = {
            "waiting": waited - start,
            "reading": read - waited,
            "encoder": time.perf_counter() - read,
        }
        return seen, _milliseconds(times)

    def keep(self, seen: Seen) -> str:
        """A name under which the encoding is kept until there are newer ones."""
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[name] = seen
            while len(self._kept) > 1 and (
                len(self._kept) > self.limits.kept
                or sum(x.nbytes for x in self._kept.values()) > self.limits.kept_bytes
            ):
                self._kept.popitem(last=False)
        return name

    def kept(self, name: str) -> Seen:
        with self._lock:
            if name not in self._kept:
                raise RequestProblem(
                    410, "This picture is no longer kept; send it again."
                )
            self._kept.move_to_end(name)
            return self._kept[name]

    def _read(self, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        most = self.limits.pixels
        try:
            with open_picture(data, "the picture") as header:
                if header.width * header.height > most:
                    raise RequestProblem(
                        413,
                        f"The picture has {header.width} x {header.height} pixels; "
                        f"this server takes {most:,} in all.",
                    )
            return image_from_bytes(data, "the picture", ReadOptions(max_pixels=most))
        except DataError as error:
            if "decompression bomb" in str(error):
                raise RequestProblem(
                    413, f"The picture has too many pixels; {most:,} are taken."
                ) from error
            raise RequestProblem(
                415,
                "This is no picture that can be read: it is damaged, or in an unknown "
                "format; send a JPEG, PNG, WebP, BMP, GIF or TIFF file.",
            ) from error

    @contextlib.contextmanager
    def _turn(self, client: str) -> Iterator[None]:
        """Waits until a request may be computed."""
        with self._lock:
            if self._waiting.total() >= self.limits.queue:
                raise RequestProblem(
                    503, "Too many requests are waiting; try again in a few seconds."
                )
            if self._waiting[client] >= self.limits.each_client:
                raise RequestProblem(
                    429, "Too many of your requests are waiting; send fewer at a time."
                )
            self._waiting[client] += 1
        try:
            if not self._workers.acquire(timeout=self.limits.wait):
                raise RequestProblem(
                    503, f"Nothing was free within {self.limits.wait:.0f} seconds."
                )
            try:
                yield
            finally:
                self._workers.release()
        finally:
            with self._lock:
                self.done += 1
                self._waiting -= collections.Counter({client: 1})

    # ------------------------------------------------------------------- labels

    def segment(self, seen: Seen, choice: Choice, client: str) -> tuple[Result, dict]:
        """A result, and what a response says of it beside maps."""
        start = time.perf_counter()
        with self._turn(client):
            waited = time.perf_counter()
            seen = _at_size(seen, choice.longest)
            considered, allowed, k = self._candidates(seen, choice)
            result = self.predictor.segment(
                seen,
                k=k,
                allowed=allowed,
                minimum_score=choice.minimum_score,
                top=choice.top,
            )
        times = {"waiting": waited - start, "selection": time.perf_counter() - waited}
        colours = self.predictor.about["colours"]
        labels = [x | {"colour": colours[x["class_id"]]} for x in result.labels]
        others = self._others(seen.scores.max(0), considered, result, colours)
        height, width = seen.size
        return result, {
            "width": width,
            "height": height,
            "labels": labels,
            "others": others,
            "milliseconds": _milliseconds(times),
        }

    def _candidates(self, seen: Seen, choice: Choice):
        """Which classes are considered (bool [C]), and what the predictor is told."""
        considered = np.full(len(self.names), choice.allowed is None)
        considered[list(choice.allowed or ())] = True
        considered[list(choice.without)] = False
        if not considered.any():
            raise RequestProblem(400, "No label is left to choose from; allow some.")
        k = choice.k or min(self.usual, self.predictor.num_ranks)
        if not choice.also:
            everything = considered.all()
            return considered, None if everything else np.flatnonzero(considered), k
        # The k best and those: as many as there are ranks, those first.
        scores = np.where(considered, seen.scores.max(0), -np.inf)
        best = np.argsort(-scores, kind="stable")[: min(k, int(considered.sum()))]
        also = [x for x in choice.also if considered[x]]
        chosen = dict.fromkeys([*also, *best.tolist()])
        chosen = list(chosen)[: self.predictor.num_ranks]
        return considered, chosen, len(chosen)

    def _others(self, scores, considered, result: Result, colours) -> list[dict]:
        """The best labels that were not selected."""
        left = considered & np.isfinite(scores)
        left[[x["class_id"] for x in result.labels]] = False
        order = np.argsort(-np.where(left, scores, -np.inf), kind="stable")[:OTHERS]
        ranks = np.empty(len(scores), int)
        ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
        return [
            {
                "name": self.names[i],
                "class_id": int(i),
                "score": round(float(sigmoid(scores[i])), 6),
                "rank": int(ranks[i]),
                "colour": colours[i],
            }
            for i in order
            if left[i]
        ]

    def search(self, text: str, limit: int) -> list[dict]:
        """Classes whose name has some text; those that begin with it first."""
        wanted = text.casefold()
        found = [
            (not name.casefold().startswith(wanted), i)
            for i, name in enumerate(self.names)
            if wanted in name.casefold()
        ]
        return [
            {"name": self.names[i], "class_id": i} for _, i in sorted(found)[:limit]
        ]


def _at_size(seen: Seen, longest: int | None) -> Seen:
    """The same picture, whose maps have this longest side."""
    if longest is None:
        return seen
    factor = longest / max(seen.size)
    size = tuple(max(1, round(side * factor)) for side in seen.size)
    views = [
        [
            dataclasses.replace(axis, length=side)
            for axis, side in zip(view, size, strict=True)
        ]
        for view in seen.views
    ]
    return dataclasses.replace(seen, size=size, views=views)


def _milliseconds(times: dict[str, float]) -> dict[str, float]:
    return {name: round(1000 * value, 1) for name, value in times.items()}


def label_map_png(label_map: UInt[np.ndarray, "H W"], num_classes: int) -> bytes:
    """A grey PNG of class ids, of 8 bits up to 255 classes, else of 16."""
    file = io.BytesIO()
    kind = np.uint8 if num_classes <= 255 else np.uint16
    Image.fromarray(label_map.astype(kind)).save(file, "PNG", compress_level=3)
    return file.getvalue()


def top_arrays(result: Result) -> dict[str, str]:
    """``places`` of the likeliest labels of each pixel in the list of labels, uint16
    ``[n H W]``, and their ``percent``, uint8; packed with zlib, in base64.
    """
    ids, shares = result.top
    table = np.zeros(int(max(x["class_id"] for x in result.labels)) + 1, "<u2")
    for place, label in enumerate(result.labels):
        table[label["class_id"]] = place
    percent = np.rint(100 * shares.astype(np.float32)).astype(np.uint8)
    return {"places": _packed(table[ids]), "percent": _packed(percent)}


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode("ascii")
