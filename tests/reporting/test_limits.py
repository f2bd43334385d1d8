"""What a report says limits a result."""

from mlseg_jax.reporting.limits import find_limits

METRICS = {"mIoU": 0.5, "oracle_mIoU": 0.6, "wrong_not_selected": 0.0}
GOOD = {"name": "road", "iou": 0.9, "pixel_share": 0.5}
POLE = {"name": "pole", "iou": 0.0, "pixel_share": 0.001}
INIT = {"init": "weights.npz", "selection.name": "top_k", "selection.k": 8}


def changes(
    metrics=METRICS, classes=(GOOD,), config=INIT, validation=(), seen=None, steps=None
):
    found = find_limits(metrics, classes, config, validation, seen or {}, steps)
    return [f"{limit.text} {limit.change}" for limit in found]


def test_nothing_limits_a_run_in_order():
    assert changes() == []
    assert "--config.init=" in changes(config={})[0]


def test_without_a_score_nothing_is_known():
    """Every pixel of the split is ignored; other tasks have no such score."""
    for metrics in ({"mIoU": None, "wrong_not_selected": 0.5, "oracle_mIoU": 0.5}, {}):
        assert changes(metrics, config={"train.steps": 100}, steps=10) == []


def test_classes_behind_are_rare_or_small():
    (said,) = changes(classes=(GOOD, POLE))
    assert said.startswith("pole is small") and "class_weighting" in said
    # 4 of 20 pictures looked at, of 40: about 8.
    seen = {"pictures": 20, "of": 40, "class_pictures": {"road": 20, "pole": 4}}
    (said,) = changes(classes=(GOOD, POLE), seen=seen)
    assert "(pole: about 8)" in said and "label more pictures with pole" in said
    seen["class_pictures"]["pole"] = 11
    assert "is small" in changes(classes=(GOOD, POLE), seen=seen)[0]


def test_a_short_training_is_seen_without_evaluations():
    settings = INIT | {"train.steps": 100, "train.batch_size": 8}
    seen = {"pictures": 20, "of": 80}
    (said,) = changes(config=settings, seen=seen, steps=50)
    assert said.startswith("50 of 100 steps were done") and "--minutes" in said
    assert changes(config=settings, seen=seen, steps=100) == []
    first, second = changes(classes=(GOOD, POLE), config=settings, steps=0)
    assert "pole is small" in first and "Nothing was trained" in second
    (said,) = changes(config=settings, seen=seen | {"of": 200}, steps=100)
    assert "about 4.0 times" in said
    # What is seen in scores says it better.
    (said,) = changes(
        config=settings, seen=seen, steps=50, validation=[(1, 0.5), (2, 0.4)]
    )
    assert "by heart" in said


def test_the_dearest_limit_comes_first():
    lost = METRICS | {"wrong_not_selected": 0.5}
    # That of the evaluation, where it is not the training's.
    assert "(K = 20)" in changes(lost | {"k": 20})[0]
    assert "eval_k=40" in changes(lost | {"k": 20})[0]
    first, second = changes(lost, validation=[(1, 0.30), (2, 0.50)])
    assert "twice the --minutes" in first and "eval_k=16" in second
    first, second = changes(lost, validation=[(1, 0.52), (2, 0.49)])
    assert "eval_k=16" in first and "eval.checkpoint=best" in second
    kept = INIT | {"eval.checkpoint": "best"}
    (said,) = changes(config=kept, validation=[(1, 0.52), (2, 0.49)])
    assert "step 1, which is kept," in said and said.endswith("label more pictures.")
    complete = INIT | {"selection.name": "complete"}
    assert changes(lost, config=complete) == []
    # Level: neither rising nor falling.
    assert changes(validation=[(1, 0.50), (2, 0.505)]) == []
