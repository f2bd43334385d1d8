"""``train``: trains, or takes up a run."""

from mlseg_jax.cli.flags import required
from mlseg_jax.cli.scores import print_scores
from mlseg_jax.training import loop


def run(flags) -> None:
    config = required(flags, "config")
    metrics = loop.train(config, required(flags, "workdir"))
    if metrics:
        print_scores(metrics, flags.workdir)
