"""Inference as method.md 12.3 has it, C channels wide: slow, and not ours."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from fake_model import K


def slow_resize(x, height, width):
    """Bilinear, align_corners=False, no anti-aliasing; ``[h w C]``, float64."""

    def along_first(x, length):
        out = np.zeros((length, *x.shape[1:]))
        for i in range(length):
            p = max((i + 0.5) * len(x) / length - 0.5, 0.0)
            low = min(int(p), len(x) - 1)
            high = min(low + 1, len(x) - 1)
            out[i] = (1 - (p - int(p))) * x[low] + (p - int(p)) * x[high]
        return out

    half = along_first(x, height)
    return along_first(half.swapaxes(0, 1), width).swapaxes(0, 1)


def slow_window(model, crop, allowed, chosen, k):
    """Class logits of one crop, C wide, -100 where not selected; and label scores."""
    labels = jax.device_get(model.encode(jnp.asarray(crop[None])))
    scores = np.where(allowed, labels.scores[0], -np.inf)
    grid = labels.elements.grid[0].astype(np.float64)
    logits = np.full((*grid.shape[:2], model.num_classes), -100.0)
    if chosen is None:
        chosen = np.argsort(-scores, kind="stable")[:k]
    for class_id in chosen:
        logits[..., class_id] = grid @ model.to_logits[:, class_id]
    return slow_resize(logits, *crop.shape[:2]), scores


def slow_view(model, image, settings, allowed, chosen, k):
    """Averaged class logits of one view at its own size."""
    height, width = image.shape[:2]
    whole = settings.mode == "whole"
    window = (height, width) if whole else settings.window
    stride = window if whole else settings.stride
    total = np.zeros((height, width, model.num_classes))
    count = np.zeros((height, width, 1))
    all_scores = []
    for row in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom = min(row * stride[0] + window[0], height)
            right = min(column * stride[1] + window[1], width)
            place = (
                slice(max(bottom - window[0], 0), bottom),
                slice(max(right - window[1], 0), right),
            )
            logits, scores = slow_window(model, image[place], allowed, chosen, k)
            total[place] += logits
            count[place] += 1
            all_scores.append(scores)
    return total / count, np.max(all_scores, axis=0)


def slow_predict(model, image, settings, allowed=None, k=K):
    """method.md 12.3, as it stands: C channels, softmax of each view, their mean."""
    allowed = np.ones(model.num_classes, bool) if allowed is None else allowed
    height, width = image.shape[:2]
    views = []
    for scale in settings.scales:
        sides = [max(1, round(side * scale)) for side in (width, height)]
        resized = cv2.resize(image, sides) if scale != 1 else image
        views.append((resized, False))
        if settings.flip:
            views.append((resized[:, ::-1], True))
    results = [slow_view(model, x, settings, allowed, None, k) for x, _ in views]
    if settings.selection_scope == "per_image":
        best = np.max([scores for _, scores in results], axis=0)
        chosen = np.argsort(-best, kind="stable")[:k]
        results = [slow_view(model, x, settings, allowed, chosen, k) for x, _ in views]
    total = np.zeros((height, width, model.num_classes))
    for (logits, _), (_, mirrored) in zip(results, views, strict=True):
        logits = slow_resize(logits, height, width)
        if len(views) > 1:
            exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
            logits = exponents / exponents.sum(axis=-1, keepdims=True)
        total += logits[:, ::-1] if mirrored else logits
    return total, np.max([scores for _, scores in results], axis=0)
