"""Checkpoints of a work directory, through Orbax: complete ones or none."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from mlseg_jax.errors import UserError

SCORES = "scores.json"
"""Beside the checkpoints: step -> weights (``average``, ``latest``) -> how good."""


class CheckpointError(UserError):
    """A checkpoint is missing or does not fit; the message is one sentence."""


class Checkpoints:
    """The newest and the best checkpoint of ``workdir/checkpoints``.

    Writing happens in the background and is committed by a rename, so a run that is
    killed while saving leaves the checkpoint before untouched.
    """

    def __init__(self, workdir: str):
        self.path = epath.Path(workdir).resolve() / "checkpoints"
        self._scores = _read_scores(self.path / SCORES)
        self._manager = ocp.CheckpointManager(
            self.path,
            # Without it, shapes could not be read before restoring.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self._scores),
                enable_async_checkpointing=True,
            ),
        )

    def save(self, step: int, state, scores: Mapping[str, float] | None) -> None:
        """Starts saving; ``scores`` of an evaluation make it a candidate for best."""
        if scores is not None:
            self.score(step, scores)
        if step in self._manager.all_steps():
            return
        with _saying_that_the_disk_is_full(self.path):
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Notes how good the weights of ``step`` are, saved already or about to be."""
        self._scores[int(step)] = {name: float(x) for name, x in scores.items()}
        # Orbax keeps scores in a checkpoint, where none can be added once it is saved.
        if jax.process_index() == 0:
            write_json(self.path / SCORES, self._scores)

    def scores(self, step: int) -> dict[int, dict[str, float]]:
        """How good the weights were, of all evaluations until ``step``."""
        return {at: s for at, s in sorted(self._scores.items()) if at <= step}

    def better_weights(self, step: int) -> str | None:
        """Which weights of ``step`` scored best, if they were evaluated."""
        scores = self._scores.get(step, {})
        return max(scores, key=scores.get, default=None)

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
            best = best_step(steps, self._scores)
            return steps[-1] if best is None else best
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
        with _saying_that_the_disk_is_full(self.path):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _saying_that_the_disk_is_full(self.path):
            self._manager.close()


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoint and the one with the highest score."""

    def __init__(self, scores: "Scores"):
        self._scores = scores

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {max(steps, default=None), best_step(steps, self._scores)}
        return [step in kept for step in steps]


Scores = Mapping[int, Mapping[str, float]]
"""Step -> weights -> how good they are."""


def best_step(steps: list[int], scores: Scores) -> int | None:
    """Of the scored steps the one with the highest score, the later one of equals."""
    best = {
        step: max(filter(math.isfinite, scores.get(step, {}).values()), default=None)
        for step in steps
    }
    scored = [step for step in steps if best[step] is not None]
    return max(scored, key=lambda step: (best[step], step), default=None)


def _read_scores(path: epath.Path) -> dict[int, dict[str, float]]:
    if not path.exists():
        return {}
    return {
        int(step): {name: x for name, x in scores.items() if x is not None}
        for step, scores in json.loads(path.read_text()).items()
    }


@contextlib.contextmanager
def _saying_that_the_disk_is_full(path: epath.Path) -> Iterator[None]:
    """Orbax's writers report a full disk as errors of many types."""
    try:
        yield
    except Exception as error:
        reason = os.strerror(errno.ENOSPC)
        if reason not in str(error):
            raise
        raise OSError(errno.ENOSPC, reason, str(path)) from error


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
