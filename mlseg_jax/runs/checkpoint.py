"""Checkpoints of a work directory, through Orbax: complete ones or none."""

import contextlib
import errno
import gc
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mlseg_jax.distributed.processes import barrier, gather
from mlseg_jax.errors import UserError

logger = logging.getLogger(__name__)

SCORES = "scores.json"
"""Beside the checkpoints: step -> weights (``average``, ``latest``) -> how good."""


class CheckpointError(UserError):
    """A checkpoint is missing or does not fit; the message is one sentence."""


class Checkpoints:
    """The two newest and the best checkpoints of ``workdir/checkpoints``.

    Writing happens in the background and is committed by a rename, so a run that is
    killed while saving leaves the checkpoint before untouched.
    """

    def __init__(self, workdir: str, keep_best: int = 1):
        self.path = epath.Path(workdir).resolve() / "checkpoints"
        self._scores = _read_scores(self.path / SCORES)
        self._manager = ocp.CheckpointManager(
            self.path,
            # Without it, shapes could not be read before restoring.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self._scores, keep_best),
                enable_async_checkpointing=True,
            ),
        )

    def save(self, step: int, state) -> None:
        """Starts saving; a step that is saved already is left alone."""
        if step in self._manager.all_steps():
            return
        with _saying_that_the_disk_is_full(self.path):
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def score(self, step: int, scores: Mapping[str, float]) -> None:
        """Notes how good the weights of ``step`` are: a candidate for best."""
        self._scores[int(step)] = {name: float(x) for name, x in scores.items()}
        # Orbax keeps scores in a checkpoint, where none can be added once it is saved.
        if jax.process_index() == 0:
            write_json(self.path / SCORES, self._scores)

    def _forget_scores_after(self, step: int) -> None:
        """Of steps that the run takes once more: it would not evaluate them again."""
        gone = [each for each in self._scores if each > step]
        for each in gone:
            del self._scores[each]
        if gone and jax.process_index() == 0:
            write_json(self.path / SCORES, self._scores)

    def is_scored(self, step: int) -> bool:
        return step in self._scores

    def scores(self, step: int) -> dict[int, dict[str, float]]:
        """How good the weights were, of all evaluations until ``step``."""
        return {at: s for at, s in sorted(self._scores.items()) if at <= step}

    def better_weights(self, step: int) -> str | None:
        """Which weights of ``step`` scored best, if they were evaluated."""
        return best_of(self._scores.get(step, {}))

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def find(self, which: str = "latest") -> int:
        """Step of the ``latest`` or ``best`` checkpoint, or of a given step number.

        The best of those that are there, where the best of all is not, with a warning.

        Raises:
          CheckpointError: there is none, or none of this number.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.path} holds no complete checkpoint; train first."
            )
        if which == "latest":
            return steps[-1]
        if which == "best":
            return self._best(steps)
        if not which.isdigit() or int(which) not in steps:
            raise CheckpointError(
                f"{self.path} has no checkpoint {which!r}; there are latest, best and "
                f"{', '.join(map(str, steps))}."
            )
        return int(which)

    def _best(self, steps: list[int]) -> int:
        found = next(iter(best_steps(steps, self._scores)), steps[-1])
        best = next(iter(best_steps(list(self._scores), self._scores)), found)
        if best not in steps:
            logger.warning(
                "The best checkpoint of %s, of step %d, is not there (train.keep_best "
                "was 0, or it was deleted); the best of those that are is taken, of "
                "step %d.",
                *(self.path, best, found),
            )
        return found

    def restore_newest(self, abstract_state) -> tuple[int, Any]:
        """Step and state of the newest checkpoint that can be read.

        Newer ones that cannot are set aside under another name. Scores of later steps
        are forgotten: the run goes on from here.

        Raises:
          CheckpointError: none can be read, or the newest does not fit.
        """
        unreadable = {}
        for step in reversed(self.steps()):
            state, reason = None, ""
            with _without_unraisable():
                try:
                    state = self.restore(step, abstract_state)
                except CheckpointError:
                    raise
                except Exception as error:  # of a library, of whatever type
                    reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            reason = next(filter(None, gather(reason)), "")
            if not reason:
                self._set_aside(unreadable, step)
                self._forget_scores_after(step)
                return step, state
            unreadable[step] = reason
        step, reason = next(iter(unreadable.items()))
        raise CheckpointError(
            f"No checkpoint of {self.path} can be read ({step}: {reason}); put back a "
            f"copy or choose another --workdir."
        )

    def _set_aside(self, unreadable: Mapping[int, str], instead: int) -> None:
        for step, reason in unreadable.items():
            logger.warning(
                "Checkpoint %d of %s cannot be read (%s); taking up the run from %d. "
                "It is kept as %d.unreadable.",
                *(step, self.path, reason, instead, step),
            )
            if jax.process_index() == 0:
                target = self.path / f"{step}.unreadable"
                if target.exists():
                    target = self.path / f"{step}.unreadable-{time.time_ns()}"
                (self.path / str(step)).rename(target)
        if unreadable:
            barrier("unreadable checkpoints", 600.0)
            self._manager.reload()

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
    """Keeps the two newest checkpoints and those with the highest scores.

    Two, because the newest may turn out to be unreadable.
    """

    def __init__(self, scores: "Scores", keep_best: int):
        self._scores, self._keep_best = scores, keep_best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-2:], *best_steps(steps, self._scores, self._keep_best)}
        return [step in kept for step in steps]


Scores = Mapping[int, Mapping[str, float]]
"""Step -> weights -> how good they are."""


def best_steps(steps: list[int], scores: Scores, count: int = 1) -> list[int]:
    """The scored steps with the highest scores, best first, later before equals."""
    best = {
        step: max(filter(math.isfinite, scores.get(step, {}).values()), default=None)
        for step in steps
    }
    scored = [step for step in steps if best[step] is not None]
    return sorted(scored, key=lambda step: (best[step], step))[::-1][:count]


def best_of(scores: dict[str, float]) -> str | None:
    """The name with the best score; what is not a number comes last."""
    return max(
        scores,
        key=lambda name: (not math.isnan(scores[name]), scores[name]),
        default=None,
    )


def _read_scores(path: epath.Path) -> dict[int, dict[str, float]]:
    if not path.exists():
        return {}
    try:
        return {
            int(step): {name: float(x) for name, x in scores.items() if x is not None}
            for step, scores in json.loads(path.read_text()).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}, which says how good the checkpoints are, is damaged "
            f"({type(error).__name__}); copy it again from where the run was trained, "
            f"or delete it: then none is known to be the best."
        ) from error


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


@contextlib.contextmanager
def _without_unraisable() -> Iterator[None]:
    """Orbax's tasks that were under way when one failed die with pages of words."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = hook


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
