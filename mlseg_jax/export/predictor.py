"""Pictures of any size through an exported model, with NumPy and Pillow alone.

Copied into every folder that ``export --to=onnx`` writes. Pictures are cut into
windows, at scales and mirrored as in evaluation, and what the model says of these is
joined over the labels that were selected: nothing here has C channels per pixel.

    model = predictor.load("folder")
    result = model(numpy_picture, k=20, allowed=["cat", "dog"])
    result.label_map, result.labels
"""

import dataclasses
import json
import pathlib

import numpy as np

from mlseg_jax.export.resampling import (
    product,
    sigmoid,
    single,
    softmax,
    stitched,
    tiles,
    unite,
    windows_of,
)

UNSELECTED = -100.0
BATCH = 8  # windows at a time


class Model:
    """The functions of an exported folder in ONNX Runtime.

    `Predictor` takes anything with ``description``, ``encode`` and ``classify``.
    """

    def __init__(self, folder, threads=None, description=None):
        import onnxruntime

        self.folder = pathlib.Path(folder)
        if description is None:
            description = read_description(self.folder)
        self.description = description
        self._options = onnxruntime.SessionOptions()
        if threads:
            self._options.intra_op_num_threads = threads
        self._open = onnxruntime.InferenceSession
        self._sessions = {}

    def run(self, name, inputs):
        """A function by its name: named arrays to named arrays."""
        session = self.session(name)
        taken = {each.name for each in session.get_inputs()}
        names = [each.name for each in session.get_outputs()]
        given = {key: np.asarray(x) for key, x in inputs.items() if key in taken}
        return dict(zip(names, session.run(names, given), strict=True))

    def session(self, name):
        """Opened once. Raises ValueError where the file is missing or damaged."""
        if name not in self._sessions:
            path = str(self.folder / f"{name}.onnx")
            try:
                session = self._open(path, self._options, ["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime has many of its own.
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{path} cannot be opened ({reason}); export the model again."
                ) from error
            self._sessions[name] = session
        return self._sessions[name]

    def encode(self, inputs):
        return self._in_batches("encode", inputs)

    def classify(self, inputs):
        return self._in_batches("classify", inputs)["logits"]

    def _in_batches(self, name, inputs):
        """As `run`, of any number of windows also where the file takes a fixed one."""
        fixed = self.session(name).get_inputs()[0].shape[0]
        inputs = {key: np.asarray(x) for key, x in inputs.items()}
        count = len(next(iter(inputs.values())))
        if not isinstance(fixed, int) or fixed == count:
            return self.run(name, inputs)
        parts = []
        for start in range(0, count, fixed):
            places = np.minimum(np.arange(start, start + fixed), count - 1)
            parts.append(self.run(name, {key: x[places] for key, x in inputs.items()}))
        return {
            key: np.concatenate([part[key] for part in parts])[:count].copy()
            for key in parts[0]
        }


def read_description(folder):
    path = pathlib.Path(folder) / "export.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no exported model ({error}); write one with "
            f"`python main.py export --to=onnx --workdir=RUN --output={folder}`."
        ) from error
    if description["format"] > 1:
        raise ValueError(f"{path} is newer than this program; take the one beside it.")
    return description


def load(folder, threads=None):
    return Predictor(Model(folder, threads))


@dataclasses.dataclass(frozen=True)
class Seen:
    """A picture as the network sees it, before any label is selected.

    ``views`` holds a pair of `Axis` for each scale and mirror image; ``encoded`` a
    dictionary of arrays for each batch of windows, in their order; ``scores`` [n C].
    """

    size: tuple
    views: list
    encoded: list
    scores: np.ndarray

    @property
    def nbytes(self):
        return sum(x.nbytes for each in self.encoded for x in each.values())


@dataclasses.dataclass(frozen=True)
class Result:
    """``label_map`` [H W]; ``labels``: dictionaries by falling score; ``top``: class
    ids and probabilities [n H W] of the likeliest labels of each pixel, or None.
    """

    label_map: np.ndarray
    labels: list
    top: tuple | None = None


class Predictor:
    def __init__(self, model):
        self.model = model
        about = self.about = model.description
        self.names = about["class_names"]
        self.num_ranks = about["selection"]["num_ranks"]
        self.window = tuple(about["input"]["size"])
        self.regions = about["model"]["num_queries"] > 0

    def __call__(self, image, **choice):
        """Segments uint8 [H W 3]; ``choice``: see `segment`."""
        return self.segment(self.look(image), **choice)

    def look(self, image, scales=None):
        """All windows of uint8 [H W 3]; ``scales``: others than those of evaluation."""
        return self.look_at([windows_of(self.about, image, scales)])[0]

    def look_at(self, pictures, check=lambda: None):
        """The same of several pictures (`windows_of`), whose windows share batches.

        ``check``: called before each batch; may raise, for one who waits no longer.
        """
        windows = [window for _, _, each in pictures for window in each]
        ends = np.cumsum([len(each) for _, _, each in pictures])
        encoded = [[] for _ in pictures]
        for start in range(0, len(windows), BATCH):
            check()
            batch = self._encode(windows[start : start + BATCH])
            count = len(batch["scores"])
            for each, (_, _, own), end in zip(encoded, pictures, ends, strict=True):
                first, last = max(end - len(own) - start, 0), min(end - start, count)
                if last - first == count:
                    each.append(batch)
                elif first < last:  # copies: parts would keep all of the batch
                    each.append({key: x[first:last].copy() for key, x in batch.items()})
        return [
            Seen(size, views, each, np.concatenate([x["scores"] for x in each]))
            for (size, views, _), each in zip(pictures, encoded, strict=True)
        ]

    def _encode(self, windows):
        canvas = np.zeros((len(windows), *self.window, 3), np.uint8)
        for place, window in zip(canvas, windows, strict=True):
            place[: window.shape[0], : window.shape[1]] = window
        inputs = {"image": canvas}
        if self.about["input"]["sized"]:
            inputs["size"] = np.int32([window.shape[:2] for window in windows])
        encoded = self.model.encode(inputs)
        return {key: np.asarray(x) for key, x in encoded.items()}

    def segment(
        self,
        seen,
        k=None,
        allowed=None,
        minimum_score=None,
        top=0,
        always=(),
        check=lambda: None,
    ):
        """What a picture that was looked at is, among some labels.

        ``k``: most labels of a window; ``allowed``: names, or ids, of the only classes
        to consider; ``minimum_score``: least probability of a label; ``top``: how many
        of the likeliest labels of each pixel to return; ``always``: class ids that
        are kept whatever their score, if they are among the best ``num_ranks``;
        ``check``: as in `look_at`, before each batch and each part of the picture.
        """
        scores = seen.scores
        mask = None
        if allowed is not None:
            mask = np.zeros(len(self.names), bool)
            mask[[self.class_id(name) for name in allowed]] = True
            if not mask.any():
                raise ValueError("The list of allowed classes is empty; name some.")
            scores = np.where(mask[None], scores, -np.inf)
        one = self.about["selection"]["scope"] == "per_image"
        chosen = scores.max(0, keepdims=True) if one else scores
        class_ids, valid = self._select(chosen, k, minimum_score, mask, always)
        if one:
            class_ids = np.repeat(class_ids, len(scores), 0)
            valid = np.repeat(valid, len(scores), 0)
        logits, start = [], 0
        for each in seen.encoded:
            check()
            rows = slice(start, start + len(each["scores"]))
            start = rows.stop
            part = {"class_ids": class_ids[rows], "valid": valid[rows]}
            logits.append(np.asarray(self.model.classify(each | part)))
        union, ranks = unite(class_ids, valid, len(self.names))
        tiles = self._regions if self.regions else self._pixels
        tiles = tiles(seen, np.concatenate(logits), ranks)
        return self._result(seen, tiles, union, scores.max(0), top, check)

    def class_id(self, name):
        if isinstance(name, str):
            if name not in self.names:
                raise ValueError(f"There is no class {name!r}.")
            return self.names.index(name)
        return int(name)

    def _select(self, scores, k, minimum_score, mask, always=()):
        """Class ids [n K] int32 by falling score, and which of them are valid."""
        settings, ranks = self.about["selection"], self.num_ranks
        order = np.argsort(-scores, axis=1, kind="stable")
        if settings["name"] == "complete" and k is None and mask is None:
            order = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        class_ids = np.ascontiguousarray(order[:, :ranks]).astype(np.int32)
        best = np.take_along_axis(scores, class_ids, 1)
        valid = best > -np.inf
        if k is not None:
            valid[:, max(1, int(k)) :] = False
        least = settings["minimum_score"] if minimum_score is None else minimum_score
        share = settings["cumulative"]
        if settings["name"] == "top_k" and (least > 0 or share < 1):
            probability = sigmoid(best)
            before = np.cumsum(probability, axis=1) - probability
            total = sigmoid(scores).sum(axis=1, keepdims=True)
            enough = (probability >= least) & (before < share * total)
            enough[:, 0] = True
            valid &= enough | np.isin(class_ids, list(always))
        return class_ids, valid

    # ------------------------------------------------------------- pixels

    def _pixels(self, seen, logits, ranks):
        """Tiles of scores [rows columns U], averaged over views."""
        fill = np.full((*logits.shape[:3], 1), UNSELECTED, np.float32)
        logits = np.concatenate([logits, fill], axis=-1)
        logits = np.stack([x[:, :, r] for x, r in zip(logits, ranks, strict=True)])
        grids, start = [], 0
        for rows, columns in seen.views:
            shape = len(rows.starts), len(columns.starts)
            part = logits[start : start + shape[0] * shape[1]]
            start += len(part)
            part = part.reshape(*shape, *part.shape[1:]).transpose(0, 2, 1, 3, 4)
            a, h, b, w, u = part.shape
            grids.append(part.reshape(a * h, b * w, u))
        for y, x in tiles(seen.size, ranks.shape[1]):
            total = None
            for grid, (rows, columns) in zip(grids, seen.views, strict=True):
                tile = product(grid, stitched(rows, y), stitched(columns, x))
                if len(grids) > 1:
                    tile = softmax(tile)
                total = tile if total is None else total + tile
            yield y, x, total / len(grids)

    # ------------------------------------------------------------- regions

    def _regions(self, seen, logits, ranks):
        """Tiles of scores: a label's probability times its mask's, over all queries."""
        probabilities = softmax(logits)
        probabilities[..., -1] = 0.0  # no-object, and what a window did not select
        last = probabilities.shape[-1] - 1
        pairs = zip(probabilities, ranks, strict=True)
        labels = np.stack([p[:, np.minimum(r, last)] for p, r in pairs])
        masks = np.concatenate([np.asarray(x["mask_logits"]) for x in seen.encoded])
        masks = masks.transpose(0, 2, 3, 1)
        ways = [(y, x) for rows, columns in seen.views
                for y in single(rows) for x in single(columns)]  # fmt: skip
        for y, x in tiles(seen.size, ranks.shape[1] + masks.shape[-1]):
            total = 0.0
            for mask, label, way in zip(masks, labels, ways, strict=True):
                (rows, row_share), (columns, column_share) = way
                share = row_share[y, None] * column_share[x][None]
                if share.any():
                    inside = sigmoid(product(mask, rows[y], columns[x]))
                    total = total + share[..., None] * (inside @ label)
            yield y, x, total / len(seen.views)

    def _likeliest(self, tile, top, views):
        """The best ranks of each pixel and their probabilities, the best first."""
        if self.regions:
            tile = tile / np.maximum(tile.sum(-1, keepdims=True), 1e-30)
        elif views == 1:
            tile = softmax(tile)
        for _ in range(top):
            best = tile.argmax(-1)[..., None]
            yield best[..., 0], np.take_along_axis(tile, best, -1)[..., 0]
            np.put_along_axis(tile, best, -1.0, -1)

    def _result(self, seen, parts, union, scores, top, check):
        size, views = seen.size, len(seen.views)
        kind = np.uint8 if len(self.names) <= 256 else np.uint16
        label_map = np.zeros(size, kind)
        top = min(top, len(union))
        ids, shares = np.zeros((top, *size), kind), np.zeros((top, *size), np.float16)
        for y, x, tile in parts:
            check()
            label_map[y, x] = union[tile.argmax(-1)]
            if top:
                for n, (best, value) in enumerate(self._likeliest(tile, top, views)):
                    ids[n, y, x], shares[n, y, x] = union[best], value
        counts = np.bincount(label_map.ravel(), minlength=len(self.names))
        order = union[np.argsort(-scores[union], kind="stable")]
        labels = [
            {
                "name": self.names[i],
                "class_id": int(i),
                "score": round(float(sigmoid(scores[i])), 6),
                "rank": rank,
                "pixel_share": round(float(counts[i] / label_map.size), 6),
            }
            for rank, i in enumerate(order)
        ]
        return Result(label_map, labels, (ids, shares) if top else None)
