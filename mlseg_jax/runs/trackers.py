"""Where the curves of a run go beside its own files: Weights & Biases, or MLflow.

Both are told of the run's whole configuration, and a run that is taken up goes on where
it was. Their packages are imported when they are asked for.
"""

import abc
import importlib
import os
import types
import uuid

import ml_collections
from etils import epath

from mlseg_jax.errors import UserError, pip_install


class AbstractTracker(abc.ABC):
    """Takes the scalars of a run."""

    @abc.abstractmethod
    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Those of one step."""

    @abc.abstractmethod
    def close(self) -> None:
        """No more will come."""


class WeightsAndBiases(AbstractTracker):
    """``WANDB_PROJECT``, ``WANDB_MODE`` and the like are read as always.

    A run keeps its name there in its work directory: another run at the same path is
    another one.
    """

    def __init__(self, workdir: str, config: ml_collections.ConfigDict):
        wandb = _imported("wandb")
        place = os.path.abspath(workdir)
        known = epath.Path(workdir) / "wandb_run.txt"
        started = known.read_text().strip() if known.exists() else uuid.uuid4().hex[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mlseg_jax"),
            name=os.path.basename(place),
            id=started,
            resume="allow",
            config=config.to_dict(),
        )
        known.write_text(started)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(AbstractTracker):
    """``MLFLOW_TRACKING_URI`` and the like are read as always."""

    def __init__(self, workdir: str, config: ml_collections.ConfigDict):
        self._mlflow = _imported("mlflow")
        known = epath.Path(workdir) / "mlflow_run.txt"
        started = known.read_text().strip() if known.exists() else None
        run = self._mlflow.start_run(
            run_id=started, run_name=os.path.basename(os.path.abspath(workdir))
        )
        if started is None:
            known.write_text(run.info.run_id)
            self._mlflow.log_params(_flat(config.to_dict()))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        self._mlflow.log_metrics(scalars, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS = {"wandb": WeightsAndBiases, "mlflow": MLflow}
"""By the value of ``train.logger``; with others there are the run's own files alone."""


def open_tracker(
    workdir: str, config: ml_collections.ConfigDict
) -> AbstractTracker | None:
    """What a configuration asks for.

    Raises:
      UserError: its package is not installed.
    """
    if config.train.logger not in TRACKERS:
        return None
    return TRACKERS[config.train.logger](workdir, config)


def _imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"train.logger={name} needs the package {name}; run "
            f"`{pip_install(name)}`, or leave it at tensorboard."
        ) from error


def _flat(values: dict, prefix: str = "") -> dict[str, str]:
    """Leaves by dotted key, as text that MLflow takes."""
    result = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = str(value)[:500]
    return result
