"""What the loop measures and says: losses, speed, who is slow, what is not finite."""

import logging
import statistics
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from input_pipeline.pipeline import names_of_batch
from mlseg_jax.errors import UserError
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.models.flops import peak_flops, training_flops
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.progress import MetricWriter, Stopwatch, log_line
from mlseg_jax.tasks.regions import bad_rows
from mlseg_jax.training.schedule import make_schedule
from mlseg_jax.training.watch import peak_memory, seconds_since_start
from mlseg_jax.training.watchdog import Watchdog, told

logger = logging.getLogger(__name__)

MAX_INPUT_WAIT = 0.05
"""Share of the time waiting for data above which the run says so."""

AHEAD = 2
"""Steps that may be begun and not done, where a clock counts them."""

UNLOGGED_STEPS = 500
"""Measurements that are kept where nothing is logged: on the devices, before they are
looked at, and then for the line at the end."""

MAX_LAG = 0.2
"""Share of a step that one process may take longer than the others before it is named.
"""


class Reports:
    """Of one training, step by step; `Stopwatch` says what is timed."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: FunctionalModel,
        source,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        watchdog: Watchdog,
    ):
        self.config, self.source = config, source
        self.checkpoints, self.writer = checkpoints, writer
        self.watchdog = watchdog
        self.watch = Stopwatch()
        self.flops_per_image = training_flops(config, model)
        self.pending, self.fetched = [], []
        self.warned = False
        self.behind = None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """What a step measured; fetched later, for nothing waits for a step.

        Raises:
          UserError: as `check_finite`, which is called here where nothing is logged.
        """
        self.pending.append((step, metrics))
        if not self.config.train.log_every and len(self.pending) >= UNLOGGED_STEPS:
            self.check_finite()

    def say_first_step(self, metrics: dict[str, jax.Array]) -> None:
        """Compiling is over; from here on, time is counted."""
        jax.block_until_ready(metrics)
        logger.info("first step after %.1f s of this process", seconds_since_start())
        self.watch.read()

    def keep_up(self) -> None:
        """Waits for all steps but the last `AHEAD`, for a clock that counts steps: else
        many are begun at once, and none of them is done.
        """
        if len(self.pending) > AHEAD:
            with self.watch.devices():
                jax.block_until_ready(self.pending[-1 - AHEAD][1])

    def check_finite(self) -> None:
        """Fetches what the last steps measured, for the next line to tell.

        Raises:
          UserError: something of it is not a number.
        """
        steps = [step for step, _ in self.pending]
        if steps:
            self.watchdog.at(steps[-1], "fetch")
        with self.watch.devices():
            fetched = jax.device_get([metrics for _, metrics in self.pending])
        self.pending.clear()
        for step, metrics in zip(steps, fetched, strict=True):
            self._check_costs(step, metrics)
            bad = [key for key, value in metrics.items() if not np.isfinite(value)]
            if bad:
                saved = self.checkpoints.steps()
                last = f"checkpoint {saved[-1]}" if saved else "no checkpoint yet"
                raise UserError(
                    f"Training diverged at step {step}: {', '.join(sorted(bad))} is "
                    f"not finite; the last good state is {last}, so lower "
                    f"optimizer.learning_rate or set optimizer.clip_norm and start "
                    f"from there."
                )
        self.fetched += fetched
        if not self.config.train.log_every:
            del self.fetched[:-UNLOGGED_STEPS]

    def _check_costs(self, step: int, metrics) -> None:
        """Names the picture whose segments cannot be matched with queries."""
        settings = self.config.train
        rows = bad_rows(metrics, settings.batch_size, settings.accumulate)
        if rows:
            where = self.config.seed, settings.batch_size, step - 1, rows
            names = ", ".join(names_of_batch(self.source, *where))
            raise UserError(
                f"Training diverged at step {step}: costs of matching are not finite "
                f"in {'one of ' if len(rows) > 1 else ''}{names}; look at the picture "
                "and its masks, or lower optimizer.learning_rate."
            )

    def log(self, step: int, bar: tqdm) -> None:
        """A line on the steps since the last one."""
        self.check_finite()
        if not self.fetched:
            return
        scalars = {
            key: float(np.mean([metrics[key] for metrics in self.fetched]))
            for key in self.fetched[0]
        }
        self.fetched.clear()
        scalars["train/learning_rate"] = float(make_schedule(self.config)(step - 1))
        scalars["train/memory_peak_gib"] = peak_memory()
        scalars |= self._speed(step)
        bar.set_postfix(
            loss=f"{scalars['loss/total']:.3f}",
            recall=f"{scalars['train/image_recall_at_k']:.2f}",
            refresh=False,
        )
        log_line(step, scalars)
        self.writer.write(step, scalars)

    def _speed(self, step: int) -> dict[str, float]:
        """How fast the steps since the last reading were; nothing after the first."""
        read = self.watch.read()
        if read.steps == 0:
            return {}
        if read.waiting > MAX_INPUT_WAIT and not self.warned:
            self.warned = True
            logger.warning(
                "The devices wait for data %.0f %% of the time: raise "
                "data.num_threads or data.num_workers.",
                100 * read.waiting,
            )
        seconds = read.seconds / read.steps
        images = self.config.train.batch_size / seconds
        speed = {
            "train/step_seconds": seconds,
            "train/images_per_second": images,
            "train/input_wait": read.waiting,
            "train/goodput": read.goodput,
            "train/hours_left": (self.config.train.steps - step) * (seconds / 3600),
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            achieved = self.flops_per_image * images
            speed["train/mfu"] = achieved / (peak * jax.device_count())
        self.watchdog.pace(
            step=seconds,
            own=read.own / read.steps,
            input=read.waiting * seconds,
        )
        return speed | self._compare(seconds)

    def _compare(self, seconds: float) -> dict[str, float]:
        """This and the other processes, as last heard: no collective, no waiting."""
        paces = {process: pace for process, (_, pace) in told().items()}
        if len(paces) < max(2, jax.process_count()) or not all(paces.values()):
            return {}
        slowest, sentence = who_is_slow(paces, seconds)
        if sentence and self.behind != slowest and jax.process_index() == 0:
            logger.warning(sentence)
        self.behind = slowest if sentence else None
        found = {"train/slowest_process": slowest}
        for key in ("own", "input"):
            each = [pace[key] for pace in paces.values()]
            found[f"train/{key}_seconds"] = statistics.fmean(each)
            found[f"train/{key}_seconds_slowest"] = max(each)
        return found


def who_is_slow(
    paces: Mapping[int, Mapping[str, float]], seconds: float
) -> tuple[int, str]:
    """Of several processes the slowest; a sentence where it holds up the others.

    Args:
      paces: by process, the seconds of a step that are its ``own``, that is not spent
        waiting for devices, and the share of these that it waited for ``input``.
      seconds: of a whole step.
    """
    own = {process: pace["own"] for process, pace in paces.items()}
    slowest = max(own, key=own.get)
    others = statistics.median(own[process] for process in own if process != slowest)
    if own[slowest] - others <= MAX_LAG * seconds:
        return slowest, ""
    return slowest, (
        f"Process {slowest} is behind the others, which wait for it: of a step of "
        f"{seconds:.3g} s, {own[slowest]:.3g} s are its own and not its devices' "
        f"({paces[slowest]['input']:.3g} s of these for data), and {others:.3g} s "
        f"those of others; look at its disk and its processor."
    )
