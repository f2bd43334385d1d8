"""The page that needs no server, in a real browser, against the predictor."""

import base64
import io
import os
import shutil
import tarfile

import cv2
import fake_onnx
import numpy as np
import pytest
from fake_service import NAMES, picture
from PIL import Image

from mlseg_jax.errors import UserError
from mlseg_jax.export import predictor
from mlseg_jax.serving import web
from mlseg_jax.serving.maps import at_size


@pytest.fixture(scope="module")
def program():
    """ONNX Runtime for browsers, where somebody has fetched it: .ci/run does."""
    if not web.cached().exists():
        if os.environ.get("CI") and shutil.which("npm"):
            pytest.fail(f"no {web.PACKAGE}, which CI fetches (.ci/run)")
        pytest.skip(f"no {web.PACKAGE} in the cache; export --to=web fetches it")
    return web.runtime_files()


@pytest.mark.parametrize("regions", [False, True], ids=["pixels", "regions"])
def test_the_page_without_a_server(browser, program, regions, tmp_path):
    path, exported, folder = (tmp_path / x for x in ("a.png", "onnx", "web"))
    cv2.imwrite(str(path), picture()[..., ::-1])
    fake_onnx.write(exported, regions)
    folder.mkdir()
    web.write_page(folder, exported, program, 3)
    browser.open(folder.joinpath("index.html").as_uri())
    browser.choose_file("#file", path)
    browser.wait_for("state.result && !state.running")  # It came before the model.
    model = predictor.load(exported, threads=1)
    seen = model.look(picture())
    compare(browser, model.segment(at_size(seen, 640), k=3, top=3))
    # Another selection: the slider, a label off, one added.
    browser.run("change('without', 0, true); change('also', 3, true)")
    browser.run("$('k').value = 2; $('k').dispatchEvent(new Event('input'))")
    browser.wait_for("state.result.labels.length === 3 && !state.running")
    ids = [i for i in np.argsort(-seen.scores.max(0)) if i not in (0, 3)][:2]
    expected = model.segment(at_size(seen, 640), k=3, allowed=[*ids, 3], top=3)
    compare(browser, expected)
    others = browser.run("state.result.others.map(x => x.name).join('|')").split("|")
    assert NAMES[0] not in others and len(others) == 2
    data = browser.run(
        "backend.mask(state.file, state.picture, choice()).then(x => x.arrayBuffer())"
        ".then(x => btoa(String.fromCharCode(...new Uint8Array(x))))"
    )
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert mask.dtype == np.uint8 and mask.shape == (40, 60)
    label_map = model.segment(seen, k=3, allowed=[*ids, 3]).label_map
    assert np.mean(mask != label_map) < 0.01
    assert browser.run("backend.labels('GRE', 8)")[0]["name"] == "green"
    assert not browser.problems()


def compare(browser, expected):
    """What the page shows, and what the predictor says."""
    shown = browser.run("state.result.labels")
    assert [x["class_id"] for x in shown] == [x["class_id"] for x in expected.labels]
    for ours, theirs in zip(expected.labels, shown, strict=True):
        assert theirs["score"] == pytest.approx(ours["score"], abs=1e-4)
        assert theirs["pixel_share"] == pytest.approx(ours["pixel_share"], abs=0.002)
    # Of second and third best many are nearly tied; the best are compared.
    shape, size = expected.label_map.shape, expected.label_map.size
    best = lambda key: np.array(  # noqa: E731
        browser.run(f"state.{key}.subarray(0, {size}).join()").split(","), int
    ).reshape(shape)
    ids = np.array([x["class_id"] for x in shown])[best("places")]
    assert np.mean(ids != expected.label_map) < 0.01
    assert np.mean(np.abs(best("shares") - 100 * np.float32(expected.top[1][0]))) < 0.5


def test_what_npm_did_not_make_is_said(tmp_path, monkeypatch):
    path, rng = tmp_path / "x.tgz", np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for name in (web.LOADER, *web.PROGRAM):
            member = tarfile.TarInfo(f"package/dist/{name}")
            data = rng.integers(48, 58, 100_000, np.uint8).tobytes()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    whole = path.read_bytes()
    assert set(web.runtime_files(str(path))) == {web.LOADER, *web.PROGRAM}
    half = len(whole) // 2
    damaged = whole[:half] + b"\xff" * 500 + whole[half + 500 :]
    for data in (b"no archive", whole[:half], damaged):
        path.write_bytes(data)
        with pytest.raises(UserError, match="is not what `npm pack onnxruntime-web@"):
            web.runtime_files(str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no npm; run `npm pack .*--runtime="):
        web.runtime_files()
