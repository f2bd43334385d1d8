"""MLSeg (RankSeg) in JAX: segmentation into hundreds to ten thousand classes.

import mlseg_jax
segmenter = mlseg_jax.load("runs/demo")
result = segmenter("picture.jpg")
result.label_map, result.labels, result.overlay()
"""


def load(workdir, checkpoint="latest"):
    """The model that was trained in ``workdir``: see `prediction.load.load`."""
    # Imported on use, so that `import mlseg_jax.typing` does not start JAX.
    from mlseg_jax.errors import refuse_foreign_pipeline

    refuse_foreign_pipeline()
    from mlseg_jax.prediction import load as loading

    return loading.load(workdir, checkpoint)


__all__ = ["load"]
