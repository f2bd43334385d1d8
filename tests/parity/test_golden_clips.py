"""Mask2Former on clips of two and five frames, out of modules of transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import close, nhwc
from test_golden_region_models import GOLDEN, converted

from mlseg_jax.label_selection import select_complete

pytestmark = pytest.mark.usefixtures("quick_compiles")


@functools.cache
def load():
    with np.load(GOLDEN / "mask2former_clips.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("num_frames", [2, 5])
def test_all_predictions_of_a_clip(num_frames):
    model, _, params, _ = converted("mask2former")
    golden = load()

    @jax.jit
    def run(params, clips):
        output = model.bind(params)(clips, select_complete, rng=jax.random.key(0))
        found = output.regions
        masks = [found.mask_logits(i) for i in range(found.num_predictions)]
        return output.class_logits, jnp.stack(masks, axis=1)

    clip = nhwc(golden[f"input:clip_{num_frames}"])[None]
    classes, masks = run(params, clip)
    close(classes, golden[f"output:classes_{num_frames}"], 5e-5)
    expected = golden[f"output:masks_{num_frames}"]
    close(masks.reshape(expected.shape), expected, 5e-5)
