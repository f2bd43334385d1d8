"""Reads from a work directory what `limits` wants to know."""

import json
from collections.abc import Mapping

from etils import epath

from mlseg_jax.fitting.choices import FILE
from mlseg_jax.reporting.charts import events, is_finite
from mlseg_jax.reporting.limits import Limit, find_limits


def limits_of_run(workdir: epath.Path, metrics: Mapping) -> list[Limit]:
    """Limits of a run whose ``metrics.json`` says ``metrics``; none where the files for
    it are missing.
    """
    path = workdir / "evaluation.json"
    if not path.exists():
        return []
    classes = json.loads(path.read_text()).get("classes", [])
    curves, points = workdir / "metrics.jsonl", []
    steps = metrics.get("step")
    if curves.exists():
        lines = list(events(curves.read_bytes()))
        steps = max([steps or 0, *(event["step"] for event in lines)])
        points = [
            (event["step"], event["eval/mIoU"])
            for event in lines
            if is_finite(event.get("eval/mIoU"))
        ]
    looked_at = {}
    if (workdir / FILE).exists():
        looked_at = json.loads((workdir / FILE).read_text()).get("looked_at", {})
    config = {}
    if (workdir / "config.json").exists():
        saved = json.loads((workdir / "config.json").read_text())
        config = {"init": saved.get("init", "")}
        for section in ("eval", "selection", "train"):
            for key, value in saved.get(section, {}).items():
                config[f"{section}.{key}"] = value
    best = max((score for _, score in points), default=0.0)
    gainless = next((i for i, (_, x) in enumerate(points[::-1]) if x == best), 0)
    if gainless > config.get("train.patience", 0) > 0:
        steps = None  # Early stopping: it was enough.
    return find_limits(metrics, classes, config, points, looked_at, steps)
