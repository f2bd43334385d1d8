"""A run that keeps its best checkpoint, by a validation part of its training data."""

import json

import pytest
from tiny import tiny_config

from mlseg_jax.runs.workdir import load_config, load_parameters
from mlseg_jax.training import loop


class Clock:
    """Over after two steps."""

    calls = 0

    def is_over(self):
        self.calls += 1
        return self.calls > 2

    def fitted(self, step, steps):
        return steps


@pytest.mark.usefixtures("quick_compiles")
def test_the_best_checkpoint_in_time_is_kept(tmp_path, monkeypatch):
    config = tiny_config(
        {
            "data.train_split": "train[:16]",
            "data.validation_split": "train[16:]",
            "eval.checkpoint": "best",
            "train.steps": 50,
            "train.eval_every": 1,
            "train.checkpoint_every": 1,
        }
    )
    looked_at, better = [], loop.better_weights

    def worse_and_worse(task, results):
        metrics, scores = better(task, results)
        looked_at.append(metrics["examples"])
        return metrics, {name: 1 / len(looked_at) for name in scores}

    monkeypatch.setattr(loop, "better_weights", worse_and_worse)
    metrics = loop.train(config, str(tmp_path), clock=Clock())
    # 8 of 24 training examples twice (the last step too), then the 6 of `val`.
    assert looked_at == [8, 8] and metrics["examples"] == 6
    assert metrics["step"] == 1
    config = load_config(str(tmp_path))
    for kept, expected in (("best", 1), ("latest", 2)):
        config.eval.checkpoint = kept
        assert load_parameters(str(tmp_path), config, "kept")[-1] == expected
    # What the test split says has chosen nothing.
    scores = json.loads((tmp_path / "checkpoints" / "scores.json").read_text())
    assert [s for (s,) in (x.values() for x in scores.values())] == [1, 1 / 2]
