"""``train``: trains, or takes up a run."""

from ml_collections import config_flags

from mlseg_jax.cli.flags import FLAGS, required
from mlseg_jax.cli.scores import print_scores
from mlseg_jax.fitting import fit
from mlseg_jax.training.watch import seconds_since_start


def run(flags) -> None:
    metrics = fit.train(
        required(flags, "config"),
        required(flags, "workdir"),
        given=config_flags.get_override_values(FLAGS["config"]),
        minutes=flags.minutes,
        already=seconds_since_start(),
    )
    if metrics:
        print_scores(metrics, flags.workdir)
