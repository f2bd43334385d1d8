"""A run as files that run without this project."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import venv

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

import mlseg_jax
from input_pipeline.datasets.open import open_dataset
from input_pipeline.files.images import read_image
from mlseg_jax.distributed.sharding import make_mesh
from mlseg_jax.errors import UserError
from mlseg_jax.export import artifacts, parity, predict, predictor
from mlseg_jax.export.description import describe
from mlseg_jax.export.onnx_files import write_onnx
from mlseg_jax.export.onnx_weights import Weights
from mlseg_jax.export.resampling import resize, views_of
from mlseg_jax.runs.checkpoint import Checkpoints
from mlseg_jax.runs.workdir import claim_workdir, load_config, load_info
from mlseg_jax.training.state import initialise

OVERRIDES = {
    "data.num_classes": 300,
    "eval.stride": (24, 24),
    "eval.scales": (0.6, 1.4),
    "eval.flip": True,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model with random weights: what it says does not matter here."""
    path = tmp_path_factory.mktemp("run")
    config = tiny_config(OVERRIDES)
    claim_workdir(config, str(path), open_dataset(config.data, train=True).info)
    checkpoints = Checkpoints(str(path))
    checkpoints.save(0, initialise(config, 300, make_mesh(config)))
    checkpoints.wait()
    checkpoints.close()
    return path


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    config = load_config(str(workdir))
    return folder, artifacts.export_run(config, str(workdir), str(folder), "onnx")


def test_the_files_and_what_is_said_of_them(exported):
    folder, description = exported
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("encode.onnx", "classify.onnx", "segment.onnx", "weights.bin"),
        *("export.json", *artifacts.PREDICTOR),
    }
    assert json.loads((folder / "export.json").read_text()) == description
    assert description["functions"]["segment"]["results"] == {
        "class_ids": "int32[B,4]",
        "label_map": "int32[B,32,32]",
        "scores": "float32[B,300]",
        "valid": "bool[B,4]",
    }
    assert len(description["class_names"]) == len(description["colours"]) == 300
    found = description["parity"]
    assert found["largest_difference_of_scores"] < 1e-4
    assert found["largest_difference_of_logits"] < 1e-4
    assert found["different_pixels"] <= 2 and found["pixels"] == 3 * 32 * 32
    assert "scores differ by at most" in parity.line(found)
    # Each weight is there once.
    parameters = 4 * 300 * 32
    assert (folder / "weights.bin").stat().st_size < 8 * parameters


def test_the_predictor_says_what_the_segmenter_says(exported, workdir):
    folder, _ = exported
    ours, theirs = mlseg_jax.load(workdir), predictor.load(folder, threads=1)
    rng = np.random.default_rng(0)
    different = pixels = 0
    for size, choice in (((20, 45), {}), ((60, 40), {"k": 3})):
        small = rng.integers(0, 256, (6, 6, 3), np.uint8)
        image = cv2.resize(small, size[::-1])
        expected, got = (
            ours(image, top_labels=2, **choice),
            theirs(image, top=2, **choice),
        )
        different += np.sum(expected.label_map != got.label_map)
        pixels += image.shape[0] * image.shape[1]
        assert [x.name for x in expected.labels] == [x["name"] for x in got.labels]
        for a, b in zip(expected.labels, got.labels, strict=True):
            assert b["score"] == pytest.approx(a.score, abs=1e-4)
            assert b["pixel_share"] == pytest.approx(a.share, abs=0.02)
        np.testing.assert_allclose(
            got.top[1].max(0), expected.top_probabilities.max(0), atol=0.02
        )
    # Ranks that are nearly tied may change places.
    assert different <= 0.01 * pixels


def bare_environment(folder):
    """The Python of a virtual environment with three packages and nothing else."""
    venv.create(folder)
    (site,) = folder.glob("lib/*/site-packages")
    for name in ("numpy", "PIL", "onnxruntime"):
        package = pathlib.Path(importlib.util.find_spec(name).origin).parent
        # With the libraries that lie beside it.
        libraries = package.with_name(f"{name.replace('PIL', 'pillow')}.libs")
        for path in (package, libraries):
            if path.exists():
                (site / path.name).symlink_to(path)
    return folder / "bin/python"


def test_the_program_beside_the_model_needs_three_packages(exported, tmp_path):
    folder, _ = exported
    python = bare_environment(tmp_path / "bare")
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    nothing = subprocess.run([python, "-c", "import jax"], capture_output=True)
    assert b"ModuleNotFoundError" in nothing.stderr
    done = subprocess.run(
        [python, folder / "predict.py", tmp_path, "--output", "out", "--k", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 1 and "b.jpg cannot be read" in done.stderr, done.stderr
    assert "1 pictures in out" in done.stdout
    (line,) = map(json.loads, (tmp_path / "out/labels.jsonl").read_text().splitlines())
    assert line["label_map"] == "a.png" and line["overlay"] == "a_overlay.png"
    label_map = cv2.imread(str(tmp_path / "out/a.png"), cv2.IMREAD_UNCHANGED)
    assert label_map.dtype == np.uint16 and label_map.shape == (40, 50)
    assert set(np.unique(label_map)) <= {x["class_id"] for x in line["labels"]}
    assert max(read_image(tmp_path / "out/a_overlay.png").shape) >= 480


def test_no_picture_is_written_over_and_no_output_by_another(tmp_path):
    names = ("a.jpg", "a.png", "a_overlay.png", "B.png", "b.gif")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    paths = predict.paths_of([str(tmp_path)])
    assert len(paths) == len(names)
    outputs = [x for pair in predict.names_of(paths, tmp_path / "out") for x in pair]
    assert len({name.casefold() for name in outputs}) == 2 * len(names)
    # The label map of the first would take the place of the second.
    for given in (paths, [tmp_path / "a.jpg", tmp_path / "A.png"]):
        with pytest.raises(ValueError, match=".png would be written over a picture"):
            predict.names_of(given, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no picture in .*empty"):
        predict.paths_of([str(tmp_path / "empty")])


@pytest.fixture(scope="module")
def of_two_sizes(workdir):
    config, sizes = load_config(str(workdir)), [(32, 32), (48, 16)]
    return artifacts.load_functions_of(config, str(workdir), sizes=sizes)[0]


def test_stablehlo_is_read_with_jax_alone(exported, of_two_sizes, tmp_path):
    """By what JAX itself has for it; any batch, and K at run time."""
    for functions in of_two_sizes:
        calls = artifacts.arguments(functions, artifacts.any_batch())
        size = functions.size if functions.size != (32, 32) else None
        calls = {"segment": calls["segment"]}
        artifacts.write_stablehlo(tmp_path, functions, calls, size)
    taller = (tmp_path / "segment_48x16.stablehlo").read_bytes()
    shapes = [x.shape[1:] for x in jax.export.deserialize(bytearray(taller)).out_avals]
    assert (48, 16) in shapes and (32, 32) not in shapes
    data = bytearray((tmp_path / "segment.stablehlo").read_bytes())
    program = jax.export.deserialize(data)
    assert program.platforms == artifacts.PLATFORMS
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    k = np.array(2, np.int32)
    got = jax.jit(program.call)(jnp.asarray(images), jnp.asarray(k))
    expected = parity.open_artifacts(exported[0], "onnx")(
        "segment", {"image": images, "k": k}
    )
    np.testing.assert_array_equal(got["class_ids"], expected["class_ids"])
    np.testing.assert_array_equal(got["valid"], [[True, True, False, False]] * 3)
    assert np.mean(got["label_map"] != expected["label_map"]) < 0.01


def test_what_cannot_be_exported_is_said(workdir):
    config = load_config(str(workdir))
    with pytest.raises(UserError, match="choose 17 to 23"):
        artifacts.export_run(config, str(workdir), "out", "onnx", opset=9)
    sizes = [(32, 32), (64, 64)]
    with pytest.raises(UserError, match="Several sizes go with --to=stablehlo"):
        artifacts.export_run(config, str(workdir), "out", "onnx", sizes=sizes)
    config.selection.eval_name = "oracle"
    with pytest.raises(UserError, match="needs more than a picture"):
        artifacts.load_functions(config, str(workdir))


def test_a_file_for_a_fixed_batch_and_one_that_is_damaged(tmp_path, workdir):
    weights = Weights(tmp_path, None)
    inputs = {"image": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    double = lambda image: {"logits": 2 * image}  # noqa: E731
    write_onnx(tmp_path / "classify.onnx", double, inputs, weights, opset=17)
    weights.close()
    model = predictor.Model(tmp_path, description={})
    for count in (1, 3, 7):
        image = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
        np.testing.assert_array_equal(model.classify({"image": image}), 2 * image)
    (tmp_path / "encode.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot be opened .*export the model again"):
        model.encode({"image": image})
    with pytest.raises(UserError, match="--batch=0 is no number"):
        artifacts.export_run(None, str(workdir), "out", "onnx", batch=0)


def test_very_long_pictures_are_refused():
    """Where windows must be full, 2 x 4000 would become 512 x 1,048,576."""
    views = {"mode": "slide", "stride": [512, 512], "scales": [1.0], "flip": False}
    about = {
        "input": {"size": [512] * 2, "grid": [32] * 2, "sized": False, "multiple": 1},
        "views": views | {"base_size": [2048, 512]},
    }
    ((size, _),) = views_of(about, (100, 400))
    assert size == (512, 2048)
    with pytest.raises(ValueError, match="cut it into shorter parts"):
        views_of(about, (2, 4000))


def test_smaller_windows_leave_no_gaps(workdir, of_two_sizes):
    """A picture of 80 x 80 through an export of --size=48,16: the stride was 24."""
    config, info = load_config(str(workdir)), load_info(str(workdir))
    config.eval.scales = (1.0,)
    about = describe(config, info, of_two_sizes[1], kind="onnx", step=0, arguments={})
    assert about["views"]["stride"] == [24, 16]
    covered = np.zeros((80, 80), bool)
    for _, (rows, columns) in views_of(about, (80, 80)):
        for y, x in itertools.product(rows.starts, columns.starts):
            covered[y : y + rows.size, x : x + columns.size] = True
    assert covered.all()


def test_what_an_earlier_export_wrote_goes_away_and_nothing_else(tmp_path):
    functions = {"encode": {"file": "encode_1x1.stablehlo"}, "x": {"file": "../x"}}
    (tmp_path / "export.json").write_text(json.dumps({"functions": functions}))
    assert artifacts.files_of(epath.Path(tmp_path)) == {"encode_1x1.stablehlo"}
    assert not artifacts.files_of(epath.Path(tmp_path / "nowhere"))


@pytest.mark.parametrize("size", [(37, 53), (128, 64), (64, 48)])
def test_pictures_are_resized_as_by_opencv(size):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (64, 48, 3), np.uint8), (3, 3), 0)
    difference = np.abs(
        resize(image, size).astype(int) - cv2.resize(image, size[::-1]).astype(int)
    )
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


@pytest.mark.parametrize(
    "quantize, most, share", [("float16", 2e-3, 0.6), ("int8", 0.1, 0.4)]
)
def test_weights_with_fewer_bits(tmp_path, quantize, most, share):
    """What is unpacked is near to what went in, and the file is smaller."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((64, 48)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 8, 16)).astype(np.float32)

    def function(image):
        values = jnp.einsum("bhwd,de->bhwe", image, jnp.asarray(matrix[:8, :]))
        window = jax.lax.conv_general_dilated(
            *(image, jnp.asarray(kernel), (1, 1), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return {"values": values, "window": window}

    inputs = {"image": jax.ShapeDtypeStruct((1, 5, 5, 8), jnp.float32)}
    sizes, results = [], []
    image = rng.standard_normal((1, 5, 5, 8)).astype(np.float32)
    for how in (None, quantize):
        folder = tmp_path / str(how)
        folder.mkdir()
        weights = Weights(folder, how)
        write_onnx(folder / "f.onnx", function, inputs, weights, opset=17)
        weights.close()
        sizes.append((folder / "weights.bin").stat().st_size)
        model = predictor.Model(folder, description={})
        results.append(model.run("f", {"image": image}))
    assert sizes[1] < share * sizes[0]
    for name, expected in results[0].items():
        np.testing.assert_allclose(
            expected, function(jnp.asarray(image))[name], atol=1e-5
        )
        error = np.max(np.abs(results[1][name] - expected))
        assert 0 < error < most * np.max(np.abs(expected))
