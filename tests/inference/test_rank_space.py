"""What is made of logits over ranks, and that no array with C channels is."""

import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from shrink import random_parameters, segmenter_config

from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.inference.probabilities import write_probabilities
from mlseg_jax.inference.rank_space import Segmented
from mlseg_jax.label_selection import Selection
from mlseg_jax.losses import pixel
from mlseg_jax.models.build import FunctionalModel
from mlseg_jax.tasks.engines import evaluation_policy, make_engine
from mlseg_jax.training.state import abstract_state
from mlseg_jax.training.step import make_train_step

C, K = 307, 4
pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def engine_and_policy():
    config = segmenter_config(k=K)
    with config.unlocked():
        config.data.update(pixel_mean=(127.5,) * 3, pixel_std=(127.5,) * 3)
        config.data.base_size = (400, 40)
        config.eval.update(window=(40, 40), stride=(40, 40), batch_size=4)
    model = FunctionalModel.build(config, C)
    parameters = jax.tree.map(jnp.asarray, random_parameters(model))
    engine = make_engine(config, model, parameters)
    return engine, evaluation_policy(config, C)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_twenty_sizes_compile_at_most_five_programs(engine_and_policy, caplog):
    engine, policy = engine_and_policy
    rng = np.random.default_rng(1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for height, width in rng.integers(40, 300, (20, 2)):
            ((segmented,),) = engine.segment([picture(height, width)], [(policy, None)])
            label_map = segmented.label_maps()
            assert label_map.shape == (1, height, width)
            assert label_map.dtype == np.uint16 and label_map.max() < C
    messages = [record.getMessage() for record in caplog.records]
    compiled = [m for m in messages if m.startswith("Finished XLA compilation")]
    assert 1 <= len(compiled) <= 5, compiled


def shapes_in(lowered) -> set[tuple[int, ...]]:
    """Of all arrays of the compiled program."""
    text = lowered.compile().as_text()
    found = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
    return {tuple(map(int, dims.split(","))) for dims in found}


def test_no_array_with_c_channels_per_pixel(engine_and_policy):
    engine, policy = engine_and_policy
    windows = np.stack([picture(40, 40)])
    arguments = engine.parameters, windows, None, None, None, policy
    shapes = shapes_in(engine.predict.lower(*arguments))
    assert any(C in shape for shape in shapes)  # the table and the scores are there
    grid = {10, 40, 100, 1600}  # cells and pixels of a side and of the whole
    assert not [s for s in shapes if C in s and grid & set(s)]


def test_the_baseline_holds_c_channels_of_cells_and_of_one_strip(monkeypatch):
    """It is C-wide on the feature grid; of pixels there is a strip or a tile at a time,
    forward and backward.
    """
    config = segmenter_config(selection="complete", depth=1)
    monkeypatch.setattr(pixel, "STRIP_BYTES", 4 * C * 2 * 40)  # two rows of pixels
    with config.unlocked():
        config.mesh.data = config.mesh.fsdp = 1
    mesh = make_mesh(config, jax.devices()[:1])
    model = FunctionalModel.build(config, C)
    shape = (1, 40, 40)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, 3), np.uint8),
        "label_map": jax.ShapeDtypeStruct(shape, np.int32),
    }
    step = make_train_step(config, model, mesh)
    shapes = shapes_in(step.lower(abstract_state(config, C, mesh), batch))
    places = [math.prod(shape) // C for shape in shapes if C in shape]
    assert max(places) == 10 * 10  # the cells, not the 40 x 40 pixels


def make_segmented(size=(37, 53), views=2, labels=5, seed=0):
    rng = np.random.default_rng(seed)
    grids, rows, columns = [], [], []
    for _ in range(views):
        grids.append(rng.standard_normal((1, 6, 7, labels)).astype(np.float32))
        rows.append(rng.random((size[0], 6)).astype(np.float32))
        columns.append(rng.random((size[1], 7)).astype(np.float32))
    class_ids = np.asarray([[3, 299, 17, 40, 0]], np.int32)
    valid = np.asarray([[True, True, True, True, False]])
    selection = Selection(class_ids, valid, C)
    grids = [np.where(valid[:, None, None], grid, -1e4) for grid in grids]
    grids = tuple(grid.astype(np.float32) for grid in grids)
    scores = np.zeros((1, C), np.float32)
    return Segmented(size, grids, tuple(rows), tuple(columns), selection, scores, 1)


def slow_probabilities(segmented):
    """Softmax of every view at every pixel, averaged: ``[K H W]``."""
    total = 0.0
    for grid, rows, columns in zip(
        segmented.grids, segmented.rows, segmented.columns, strict=True
    ):
        logits = np.einsum("Hh,hwk,Ww->kHW", rows, grid[0], columns)
        weights = np.exp(logits - logits.max(axis=0))
        total = total + weights / weights.sum(axis=0)
    return total / len(segmented.grids)


@pytest.mark.parametrize("views", [1, 3])
def test_top_labels(views):
    segmented = make_segmented(views=views)
    expected = slow_probabilities(segmented)
    labels, probabilities = segmented.top_labels(3)
    assert labels.shape == probabilities.shape == (1, 3, 37, 53)
    order = np.argsort(-expected, axis=0, kind="stable")[:3]
    np.testing.assert_array_equal(labels[0], segmented.selection.class_ids[0][order])
    best = np.take_along_axis(expected, order, axis=0)
    np.testing.assert_allclose(probabilities[0], best, atol=1e-3)
    np.testing.assert_array_equal(labels[:, 0], segmented.label_maps())


def test_probabilities_of_all_classes_on_disk(tmp_path):
    segmented = make_segmented()
    write_probabilities([(0, segmented)], tmp_path / "p.zarr", (C, 37, 53))
    path = str(tmp_path / "p.zarr")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}}
    written = ts.open(spec).result().read().result()
    assert written.shape == (C, 37, 53)
    expected = slow_probabilities(segmented)
    class_ids = segmented.selection.class_ids[0]
    for class_id, values in zip(class_ids[:4], expected[:4], strict=True):
        np.testing.assert_allclose(written[class_id], values, atol=1e-3)
    assert set(np.flatnonzero(written.any(axis=(1, 2)))) <= set(class_ids[:4])
    with pytest.raises(UserError, match=r"already; give a new path\.$"):
        write_probabilities([(0, segmented)], tmp_path / "p.zarr", (C, 37, 53))
