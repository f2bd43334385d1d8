"""Checkpoints of a work directory, through Orbax: complete ones or none."""

import json
import math
from collections.abc import Mapping

import orbax.checkpoint as ocp
from etils import epath

from mlseg_jax.errors import UserError

BEST_METRIC = "mIoU"


class CheckpointError(UserError):
    """A checkpoint is missing or does not fit; the message is one sentence."""


class Checkpoints:
    """The newest and the best checkpoint of ``workdir/checkpoints``.

    Writing happens in the background and is committed by a rename, so a run that is
    killed while saving leaves the checkpoint before untouched.
    """

    def __init__(self, workdir: str):
        self.path = epath.Path(workdir).resolve() / "checkpoints"
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep, enable_async_checkpointing=True
            ),
        )

    def save(self, step: int, state, metrics: Mapping[str, float] | None) -> None:
        """Starts saving; ``metrics`` of an evaluation make it a candidate for best."""
        if step in self._manager.all_steps():
            return
        best = None
        if metrics is not None:
            best = {BEST_METRIC: float(metrics[BEST_METRIC])}
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=best)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def find(self, which: str = "latest") -> int:
        """Step of the ``latest`` or ``best`` checkpoint, or of a given step number."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.path} holds no complete checkpoint; train first."
            )
        if which == "latest":
            return steps[-1]
        if which == "best":
            scores = {step: self._manager.metrics(step) for step in steps}
            scored = {s: m[BEST_METRIC] for s, m in scores.items() if m}
            return max(scored, key=scored.get) if scored else steps[-1]
        if not which.isdigit() or int(which) not in steps:
            raise CheckpointError(
                f"{self.path} has no checkpoint {which!r}; there are latest, best and "
                f"{', '.join(map(str, steps))}."
            )
        return int(which)

    def restore(self, step: int, abstract_state):
        """The state saved at ``step``, in the shardings of ``abstract_state``."""
        self._check(step, abstract_state)
        return self._manager.restore(
            step, args=ocp.args.StandardRestore(abstract_state)
        )

    def restore_part(self, step: int, abstract_part):
        """Some top-level entries of the state, e.g. the parameters alone."""
        self._check(step, abstract_part)
        path = self.path / str(step) / "default"
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_part)
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=abstract_part, restore_args=restore_args, partial_restore=True
                ),
            )

    def _check(self, step: int, abstract_state) -> None:
        """Compares parameter shapes before Orbax does, to say it in a sentence."""
        part = "params" if "params" in abstract_state else next(iter(abstract_state))
        saved, wanted = self._manager.item_metadata(step)[part], abstract_state[part]
        wrong = [
            f"{path} is {tuple(saved[path].shape) if path in saved else 'missing'} "
            f"and should be {tuple(array.shape)}"
            for path, array in wanted.items()
            if path not in saved or tuple(saved[path].shape) != tuple(array.shape)
        ]
        if wrong:
            raise CheckpointError(
                f"Checkpoint {step} of {self.path} does not fit the configuration: "
                f"{'; '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}."
            )

    def wait(self) -> None:
        """Until everything that was begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def write_json(path: epath.Path, value) -> None:
    """Writes whole or not at all: beside the file first, then renamed over it."""
    path = epath.Path(path)
    part = path.parent / (path.name + ".part")
    part.write_text(json.dumps(without_nan(value), indent=2) + "\n")
    part.replace(path)


def without_nan(value):
    """The value with ``None`` for what is not a finite number, as JSON wants it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
