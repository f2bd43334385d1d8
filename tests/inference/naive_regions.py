"""Results of regions as plain loops over whole masks at the size of the picture."""

import jax
import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
    values = np.exp(np.asarray(x, np.float64) - x.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def full_masks(logits, padded, resized, size):
    """Logits [N h w] at the network's input, cropped, at the picture: [N H W]."""
    with jax.enable_x64(True):
        resize = lambda x, to: np.asarray(  # noqa: E731
            jax.image.resize(
                np.asarray(x, np.float64), (len(x), *to), "linear", antialias=False
            )
        )
        inside = resize(logits, padded)[:, : resized[0], : resized[1]]
        return resize(inside, size)


def semantic_scores(class_logits, masks):
    probabilities = softmax(class_logits)[:, :-1]
    return np.einsum("nk,nyx->kyx", probabilities, sigmoid(masks))


def panoptic(
    class_logits,
    masks,
    class_ids,
    is_thing,
    object_threshold,
    overlap_threshold,
    inside,
):
    """Segment map, and (class id, score) of each segment; query by query."""
    probabilities = softmax(class_logits)
    size = masks.shape[1:]
    segment_map, segments, stuff = np.zeros(size, int), [], {}
    kept = [
        q
        for q, p in enumerate(probabilities)
        if p.argmax() != len(p) - 1 and p.max() > object_threshold
    ]
    if not kept:
        return segment_map, segments, np.full(size, np.inf)
    soft = sigmoid(masks[kept])
    weighted = np.stack([probabilities[q].max() * m for q, m in zip(kept, soft)])  # noqa: B905
    winner = weighted.argmax(0)
    for i, q in enumerate(kept):
        won, mask = winner == i, soft[i] >= 0.5
        both = won & mask
        if not (won.any() and mask.any() and (both.any() or not inside)):
            continue
        if won.sum() / mask.sum() < overlap_threshold:
            continue
        rank = probabilities[q].argmax()
        class_id = int(class_ids[rank])
        region = both if inside else won
        if not is_thing[class_id] and class_id in stuff:
            number = stuff[class_id]
            score = max(segments[number - 1][1], probabilities[q].max())
            segments[number - 1] = (class_id, score, int(rank))
        else:
            segments.append((class_id, probabilities[q].max(), int(rank)))
            number = len(segments)
            if not is_thing[class_id]:
                stuff[class_id] = number
        segment_map[region] = number
    ordered = np.sort(weighted, axis=0)
    gap = ordered[-1] - ordered[-2] if len(kept) > 1 else np.full(size, np.inf)
    margin = np.minimum(gap, np.abs(masks[kept]).min(0))
    return segment_map, segments, margin


def instances(class_logits, masks, class_ids, count):
    """(class id, score, mask) of the best pairs, by falling score."""
    probabilities = softmax(class_logits)[:, :-1]
    pairs = np.argsort(-probabilities.ravel(), kind="stable")[:count]
    result = []
    for pair in pairs:
        q, rank = divmod(int(pair), probabilities.shape[1])
        mask = masks[q] > 0
        mean = (sigmoid(masks[q]) * mask).sum() / (mask.sum() + 1e-6)
        if mask.any():
            result.append((int(class_ids[rank]), probabilities[q, rank] * mean, mask))
    return sorted(result, key=lambda x: -x[1])
