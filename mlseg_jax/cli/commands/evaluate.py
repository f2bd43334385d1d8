"""``evaluate``: the scores of a trained run, perhaps with another selection."""

from mlseg_jax.cli.flags import required
from mlseg_jax.cli.scores import print_scores
from mlseg_jax.prediction.evaluate_run import evaluate_run


def run(flags) -> None:
    workdir = required(flags, "workdir")
    metrics = evaluate_run(flags.config, workdir, flags.checkpoint, flags.output)
    print_scores(metrics, flags.output or workdir)
