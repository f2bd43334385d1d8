"""MLSeg (RankSeg) in JAX: segmentation into hundreds to ten thousand classes.

import mlseg_jax
segmenter = mlseg_jax.load("runs/demo")
result = segmenter("picture.jpg")
result.label_map, result.labels, result.overlay()

mlseg_jax.train("configs/demo.py", "runs/mine", overrides={"train.steps": 300})
mlseg_jax.evaluate("runs/mine", overrides={"selection.eval_k": 20})["mIoU"]
"""

import os


def load(workdir, checkpoint="kept"):
    """The model that was trained in ``workdir``: see `prediction.load.load`."""
    # Imported on use, so that `import mlseg_jax.typing` does not start JAX.
    from mlseg_jax.errors import refuse_foreign_pipeline

    refuse_foreign_pipeline()
    from mlseg_jax.prediction import load as loading

    return loading.load(workdir, checkpoint)


def train(config, workdir, *, overrides=None, minutes=0.0):
    """Trains, or takes up a run, as the command ``train`` does.

    As there, Python ends (with code 75) where nothing moves for ``train.hang_minutes``;
    with 0 it never does.

    Args:
      config: ``FILE.py`` or ``FILE.py:ARGS`` as text or a path (``configs/...`` are
        ours everywhere), or a ``ConfigDict``.
      workdir: directory of the run.
      overrides: values by dotted key.
      minutes: of wall time that steps and schedule are fitted to; 0 is no limit.

    Returns:
      What the command writes to ``metrics.json``.

    Raises:
      UserError: one sentence that says what is wrong.
    """
    from mlseg_jax.errors import refuse_foreign_pipeline

    refuse_foreign_pipeline()
    from mlseg_jax.fitting import fit
    from mlseg_jax.fitting.choices import changed
    from mlseg_jax.models.build import check_config
    from mlseg_jax.settings import recipes
    from mlseg_jax.settings.resolve import expand_home

    given = frozenset(overrides or ())
    if isinstance(config, str | os.PathLike):
        config = recipes.load(os.fspath(config), overrides)
    else:
        config = config.copy_and_resolve_references()
        recipes.change(config, overrides)
        if config.get("choose_settings", False):
            given |= changed(config)
    check_config(config)
    expand_home(config)
    workdir = os.path.expanduser(str(workdir))
    return fit.train(config, workdir, given=given, minutes=minutes)


def evaluate(workdir, *, overrides=None, checkpoint="kept", output=None):
    """The scores of a run, as the command ``evaluate`` writes them; see `train`.

    ``output`` is where they are written, if not to ``workdir``.
    """
    from mlseg_jax.errors import refuse_foreign_pipeline

    refuse_foreign_pipeline()
    from mlseg_jax.models.build import check_config
    from mlseg_jax.prediction.evaluate_run import evaluate_run
    from mlseg_jax.runs.workdir import load_config
    from mlseg_jax.settings import recipes
    from mlseg_jax.settings.resolve import expand_home

    workdir = os.path.expanduser(str(workdir))
    config = load_config(workdir)
    # The devices of the training need not be here.
    config.mesh.update(data=-1, fsdp=1)
    recipes.change(config, overrides)
    check_config(config)
    expand_home(config)
    output = output and os.path.expanduser(str(output))
    return evaluate_run(config, workdir, str(checkpoint), output)


__all__ = ["evaluate", "load", "train"]
