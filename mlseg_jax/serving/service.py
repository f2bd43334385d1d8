"""What the server does with pictures, whatever brings them."""

import collections
import secrets
import threading
import time
from collections.abc import Sequence

import numpy as np

from mlseg_jax.export.predictor import Predictor, Result, Seen
from mlseg_jax.export.resampling import sigmoid
from mlseg_jax.serving.choice import Choice
from mlseg_jax.serving.limits import Check, Gone, Limits, Places, Turns, never
from mlseg_jax.serving.looking import Job, Looking
from mlseg_jax.serving.maps import at_size, label_map_png, top_arrays
from mlseg_jax.serving.problems import RequestProblem

OTHERS = 40
"""Labels after the selected ones that a page is told of."""


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
        limits = self.limits = limits or Limits()
        self.names = predictor.names
        self._kept: collections.OrderedDict[str, Seen] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.arriving = Places(
            limits.arriving, limits.each_client, limits.arriving_bytes
        )
        self.queue = Places(limits.queue, limits.each_client)
        self._turns = Turns(limits)
        self._looking = Looking(predictor, limits)

    # ------------------------------------------------------------------- pictures

    def picture(
        self, data: bytes, choice: Choice, gone: Gone = never, as_png: bool = False
    ) -> tuple[Seen, dict | bytes]:
        """A picture's encoding, and what a response says of it; both in one turn.

        Raises:
          RequestProblem: it cannot be read, is too large, or takes too long.
          ConnectionAbortedError: its sender has hung up.
        """
        job = Job(data, choice.scales, gone)
        with self._looking.waiting(job), self._turns.one(gone) as check:
            seen, seconds = self._looking.look(job, check)
            found = self._segment(seen, choice, check, as_png)
        if not as_png:
            found["milliseconds"] = _milliseconds(seconds) | found["milliseconds"]
        return seen, found

    def keep(self, seen: Seen) -> str | None:
        """A name under which the encoding is kept until there are newer ones; None
        where it alone is larger than all that is kept.
        """
        if seen.nbytes > self.limits.kept_bytes:
            return None
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[name] = seen
            while (
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

    # ------------------------------------------------------------------- labels

    def segment(
        self, seen: Seen, choice: Choice, gone: Gone = never, as_png: bool = False
    ) -> dict | bytes:
        """What a response says, or the label map alone as a file."""
        start = time.perf_counter()
        with self._turns.one(gone) as check:
            waited = time.perf_counter() - start
            found = self._segment(seen, choice, check, as_png)
        if not as_png:
            found["milliseconds"] |= _milliseconds({"waiting": waited})
        return found

    def _segment(
        self, seen: Seen, choice: Choice, check: Check, as_png: bool
    ) -> dict | bytes:
        start = time.perf_counter()
        seen = at_size(seen, choice.longest)
        maps = seen.size[0] * seen.size[1] * max(1, choice.top)
        if maps > self.limits.pixels:
            raise RequestProblem(
                413,
                f"The result would have {maps:,} pixels in all its maps; this server "
                f"makes {self.limits.pixels:,}: ask for a smaller longest, or top.",
            )
        considered, allowed, k = self._candidates(seen, choice)
        result = self.predictor.segment(
            seen,
            k=k,
            allowed=allowed,
            minimum_score=choice.minimum_score,
            always=choice.also,
            top=choice.top,
            check=check,
        )
        # In the turn as well, because packing takes memory and time.
        if as_png:
            return label_map_png(result.label_map, len(self.names))
        top = {} if result.top is None else {"top": top_arrays(result)}
        times = {"selection": time.perf_counter() - start}
        colours = self.predictor.about["colours"]
        labels = [x | {"colour": colours[x["class_id"]]} for x in result.labels]
        others = self._others(seen.scores.max(0), considered, result, colours)
        height, width = seen.size
        return {
            "width": width,
            "height": height,
            "labels": labels,
            "others": others,
            "milliseconds": _milliseconds(times),
        } | top

    def _candidates(self, seen: Seen, choice: Choice):
        """Which classes are considered (bool [C]), and what the predictor is told."""
        considered = np.full(len(self.names), choice.allowed is None)
        considered[[*(choice.allowed or ()), *choice.also]] = True
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


def _milliseconds(times: dict[str, float]) -> dict[str, float]:
    return {name: round(1000 * value, 1) for name, value in times.items()}
