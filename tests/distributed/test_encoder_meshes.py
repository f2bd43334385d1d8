"""Decoders that run the backbone's last blocks train alike on every mesh."""

import jax
import numpy as np
import pytest
from test_sharding import CLASSES, mesh_of, small_arrays_are_split_too  # noqa: F401

from benchmarks.measure import noise_batch
from configs import encoder_only, eomt
from mlseg_jax.distributed.sharding import put_batch
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.planning.compiled import read_program
from mlseg_jax.training.state import initialise
from mlseg_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compiles")

RECIPES = {
    "encoder_only": (encoder_only, ",head=narrow"),
    "eomt": (eomt, ",task=panoptic,selection=top_k"),
}

IN_THE_SUITE = ("encoder_only",)
"""EoMT takes 20 seconds of processor time; it was run by hand."""


def make_config(name: str):
    recipe, more = RECIPES[name]
    config = recipe.get_config(f"dataset=sign_scenes,backbone=dinov3_demo{more}")
    with config.unlocked():
        config.data.update(num_classes=CLASSES, crop_size=(48, 48), max_segments=14)
        config.selection.k = 6
        config.model.backbone.update(embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
        config.model.backbone.update(scan=True, position_rescale=2.0)
        config.model.decoder.depth = 1
        config.model.multilabel_head.update(embed_dim=16, num_heads=2)
        if name == "eomt":
            config.model.decoder.update(
                num_queries=14, mask_starts=(0.0,), mask_ends=(1.0,)
            )
            config.loss.regions.num_points = 48
        config.optimizer.update(schedule="constant", warmup_steps=0)
        config.train.steps = 8
    return config


def run(name: str, data: int, fsdp: int, remat: str):
    """Two steps with dropout and masks: losses, and the compiled program."""
    config = make_config(name)
    config.model.backbone.remat = remat
    mesh = mesh_of(data, fsdp)
    model = FunctionalModel.build(config, CLASSES)
    batch = put_batch(mesh, noise_batch(config, 8, CLASSES))
    state = initialise(config, CLASSES, mesh)
    step = make_train_step(config, model, mesh).lower(state, batch).compile()
    losses = []
    for _ in range(2):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss/total"]))
    program = read_program(step.as_text(), [0] * mesh.size)
    return losses, jax.device_get(state["params"]), program


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_every_mesh_gives_the_same_losses(name):
    losses, params, _ = run(name, 1, 1, "none")
    found, _, program = run(name, 2, 4, "full")
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    assert losses[0] != losses[1]
    # Weights travel and no activations: what is gathered is one weight at most.
    collectives = {each.kind: each for each in program.collectives}
    assert set(collectives) <= {"all-reduce", "all-gather", "reduce-scatter"}
    largest = max(x.nbytes for x in params.values())
    assert 0 < collectives["all-gather"].largest <= largest
