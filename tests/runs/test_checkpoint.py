"""Checkpoints: what is found, what is kept, what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mlseg_jax.runs.checkpoint import (
    CheckpointError,
    Checkpoints,
    best_of,
    best_steps,
    without_nan,
    write_json,
)


def make_state(step=0, width=4):
    params = {
        "head/kernel": jnp.full((3, width), float(step)),
        "head/bias": jnp.arange(width, dtype=jnp.float32),
    }
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": params,
        "opt_state": ({"count": jnp.asarray(step)}, jax.tree.map(jnp.copy, params)),
        "ema": {},
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def fill(path, steps, scores=None):
    checkpoints = Checkpoints(str(path))
    for step in steps:
        checkpoints.save(step, make_state(step))
        if step in (scores or {}):
            checkpoints.score(step, {"average": scores[step]})
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    fill(path, [2, 4, 5, 6], {2: 0.1, 4: 0.8})
    return path


@pytest.fixture
def checkpoints(saved):
    """Opened anew, as another process would."""
    opened = Checkpoints(str(saved))
    yield opened
    opened.close()


def test_latest_best_and_by_number(checkpoints):
    assert checkpoints.steps() == [4, 5, 6]
    assert checkpoints.find() == checkpoints.find("latest") == 6
    assert checkpoints.find("best") == 4
    assert checkpoints.find("4") == 4
    for which in ("2", "7", "newest", "-1", "4.0"):
        with pytest.raises(CheckpointError, match="latest, best and 4, 5, 6"):
            checkpoints.find(which)


def test_a_best_checkpoint_that_was_not_kept_is_told(tmp_path, caplog):
    fill(tmp_path, [1, 2, 3], {1: 0.1, 2: 0.4, 3: 0.3})
    path = tmp_path / "checkpoints"
    for best in (2, 3):
        opened = Checkpoints(str(tmp_path))
        assert opened.find("best") == best
        opened.close()
        assert ("of step 2, is not there" in caplog.text) == (best != 2)
        shutil.rmtree(path / "2", ignore_errors=True)
    assert f"of {path}, of step 2" in caplog.text and "of step 3." in caplog.text


def test_an_empty_directory(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(CheckpointError, match="no complete checkpoint; train first"):
        checkpoints.find("best")
    checkpoints.close()


def test_without_scores_the_best_is_the_newest(tmp_path):
    fill(tmp_path, [1, 2])
    checkpoints = Checkpoints(str(tmp_path))
    assert (checkpoints.steps(), checkpoints.find("best")) == ([1, 2], 2)
    checkpoints.close()


def test_best_steps():
    half, nan = {"average": 0.5}, {"average": float("nan")}
    assert best_steps([1, 2, 3], {1: half, 2: half, 9: {"average": 1.0}}) == [2]
    assert best_steps([1, 2], {1: {"latest": 0.6} | nan, 2: half}) == [1]
    assert best_steps([1, 2, 3], {1: half, 2: half, 3: {"average": 0.7}}, 2) == [3, 2]
    assert best_steps([1, 2], {1: nan}) == []
    assert best_steps([], {}) == []


def test_an_unreadable_checkpoint_is_set_aside(saved, tmp_path, caplog):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "checkpoints/6").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = Checkpoints(str(tmp_path))
    step, state = checkpoints.restore_newest(abstract(make_state()))
    assert step == int(state["step"]) == 5
    assert "Checkpoint 6" in caplog.text and "from 5" in caplog.text
    assert (tmp_path / "checkpoints/6.unreadable").is_dir()
    checkpoints.save(6, make_state(6))
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5, 6]
    assert checkpoints.restore_newest(abstract(make_state()))[0] == 6
    checkpoints.close()


def test_when_nothing_can_be_read(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.unlink()
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(CheckpointError, match="No checkpoint of .* can be read .6: "):
        checkpoints.restore_newest(abstract(make_state()))
    checkpoints.close()


def test_the_whole_state_comes_back(checkpoints):
    state = make_state(6)
    restored = checkpoints.restore(6, abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_part_comes_back_alone(checkpoints):
    part = checkpoints.restore_part(4, {"params": abstract(make_state())["params"]})
    assert set(part) == {"params"}
    np.testing.assert_array_equal(part["params"]["head/kernel"], np.full((3, 4), 4.0))


@pytest.mark.parametrize("whole", [True, False])
def test_other_shapes_are_named(checkpoints, whole):
    state = abstract(make_state(width=5))
    with pytest.raises(CheckpointError) as caught:
        if whole:
            checkpoints.restore(6, state)
        else:
            checkpoints.restore_part(6, {"params": state["params"]})
    text = str(caught.value)
    assert "head/kernel is (3, 4) and should be (3, 5)" in text
    assert "head/bias is (4,) and should be (5,)" in text


def test_a_missing_parameter_is_named(checkpoints):
    params = {**abstract(make_state())["params"]}
    params["head/new"] = params["head/bias"]
    with pytest.raises(CheckpointError, match="head/new is missing"):
        checkpoints.restore_part(6, {"params": params})


def test_a_missing_average_is_named(checkpoints):
    with pytest.raises(CheckpointError, match="head/bias is missing"):
        checkpoints.restore_part(6, {"ema": abstract(make_state())["params"]})


def test_a_half_written_checkpoint_is_ignored(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    half = folder / "8.orbax-checkpoint-tmp"
    shutil.copytree(folder / "6", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.steps() == [4, 5, 6]
    checkpoints.save(8, make_state(8))
    checkpoints.score(8, {"average": 0.9})
    checkpoints.wait()
    assert checkpoints.find("best") == checkpoints.find("latest") == 8
    restored = checkpoints.restore(8, abstract(make_state()))
    assert int(restored["step"]) == 8
    checkpoints.close()


def test_saving_a_step_again_changes_nothing(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(6, make_state(99))
    checkpoints.wait()
    assert int(checkpoints.restore(6, abstract(make_state()))["step"]) == 6
    checkpoints.close()


@pytest.mark.parametrize("text", ['{"2": {"aver', "[1]", '{"2": {"average": [1]}}'])
def test_damaged_scores_are_said(tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/scores.json").write_text(text)
    with pytest.raises(CheckpointError, match="scores.json, .* is damaged .*delete it"):
        Checkpoints(str(tmp_path))


def test_json_is_whole_and_without_nan(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    write_json(path, {"x": float("nan"), "y": [1.0, (float("inf"), 2)]})
    assert json.loads(path.read_text()) == {"x": None, "y": [1.0, [None, 2]]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert without_nan({"a": 1, "b": True}) == {"a": 1, "b": True}


def test_what_is_not_a_number_is_never_the_best():
    nan = float("nan")
    assert best_of({"latest": nan, "average": 0.1}) == "average"
    assert best_of({"average": 0.1, "latest": nan}) == "average"
    assert best_of({"latest": nan}) == "latest" and best_of({}) is None
