"""The page in a real browser."""

import http.client
import json

import av
import cv2
import numpy as np
from fake_service import COLOURS, NAMES, picture, running

from mlseg_jax.serving.limits import Limits


def test_the_page_in_a_browser(browser, tmp_path):
    path = tmp_path / "a picture.png"
    cv2.imwrite(str(path), picture()[..., ::-1])
    with running(Limits(windows=50)) as (service, port):
        use(browser, port, path, service, tmp_path)
        assert not browser.problems()
        refuse(browser, tmp_path / "long.png")


def use(browser, port, path, service, folder):
    browser.open(f"http://127.0.0.1:{port}/")
    browser.wait_for("state.model")
    browser.choose_file("#file", path)
    browser.wait_for("state.result && !state.running")
    labels = "[...document.querySelectorAll('#labels .name')].map(x => x.textContent)"
    assert browser.run(labels) == ["red", "green", "blue"]
    encodings = service.predictor.model.encodings

    # The slider asks for another selection, and the numbers are the API's.
    browser.run("$('k').value = 4; $('k').dispatchEvent(new Event('input'))")
    browser.wait_for("state.result.labels.length === 4 && !state.running")
    assert browser.run(labels)[3] == NAMES[3]  # as text: no picture was made of it
    assert browser.run("document.querySelectorAll('#labels img').length") == 0
    assert service.predictor.model.encodings == encodings
    shown = json.loads(browser.run("JSON.stringify(state.result.labels)"))
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(
        "POST",
        "/segment?k=4&longest=640",
        path.read_bytes(),
        {"Content-Type": "image/png"},
    )
    assert json.loads(connection.getresponse().read())["labels"] == shown
    connection.close()

    # A label off, one added, one alone; what is under the pointer.
    browser.run("document.querySelector('#labels input').click()")
    browser.wait_for("state.without.size === 1 && !state.running")
    assert browser.run(labels) == ["green", "blue", NAMES[3], NAMES[4], "red"]
    browser.run("document.querySelector('#labels li.off input').click()")
    browser.wait_for("state.without.size === 0 && !state.running")
    # What is off can be added, and then is not off.
    browser.run("change('without', 5, true); change('also', 5, true)")
    browser.wait_for(
        "state.result.labels.some(x => x.class_id === 5) && !state.running"
    )
    assert browser.run("state.without.size") == 0
    browser.run("change('also', 5, false)")
    browser.wait_for("state.result.labels.length === 4 && !state.running")
    browser.run("document.querySelectorAll('#labels .row')[2].click()")
    assert browser.run("state.alone") == 2
    browser.run(
        "$('canvas').focus(); $('canvas').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowDown'}))"
    )
    assert "%" in browser.run("$('said').textContent")
    browser.run(
        "$('search').value = 'gre'; $('search').dispatchEvent(new Event('input'))"
    )
    browser.wait_for("document.querySelectorAll('#found li').length === 2")
    browser.run("$('theme').click()")
    for scheme, size in (("light", (1280, 820)), ("dark", (390, 844))):
        browser.colours(scheme)
        browser.screen(*size)
        browser.picture(folder / f"{scheme}.png")
        assert (folder / f"{scheme}.png").stat().st_size > 10_000
        overflow = "document.documentElement.scrollWidth - innerWidth"
        assert browser.run(overflow) <= 0


def refuse(browser, path):
    """What was shown stays, under its own name, and is what is saved."""
    cv2.imwrite(str(path), np.zeros((2, 3000, 3), np.uint8))
    look = "draw(), $('canvas').toDataURL()"
    before = browser.run(f"state.alone = state.cursor = null, {look}")
    browser.choose_file("#file", path)
    browser.wait_for("$('problem').textContent.includes('windows') && !state.running")
    assert browser.run(look) == before
    assert browser.run("state.file.name") == "a picture.png"
    mask = "backend.mask(shown.file, 'gone', shown.choice).then(x => x.type)"
    assert browser.run(f"(({{ shown }}) => {mask})(state)") == "image/png"
    browser.run("$('k').value = 2; $('k').dispatchEvent(new Event('input'))")
    browser.wait_for("state.result.labels.length === 2 && !state.running")


def write_video(path):
    """Red for a second, then green: 64 x 48, ten frames a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            colour = COLOURS[number // 10].astype(np.uint8)
            image = np.broadcast_to(colour, (48, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def test_a_video_is_a_strip_of_frames(browser, tmp_path):
    """What is chosen holds for all frames."""
    write_video(tmp_path / "clip.webm")
    with running() as (_, port):
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for("state.model")
        browser.choose_file("#file", tmp_path / "clip.webm")
        frames = "[...document.querySelectorAll('#strip button')]"
        browser.wait_for(f"{frames}.filter(x => x.ariaLabel.includes(':')).length > 15")
        said = browser.run(f"{frames}.map(x => x.ariaLabel)")
        assert len(said) == 16 and said[0] == "Frame at 0.1 seconds: red"
        assert said[-1].endswith("seconds: green")
        browser.run(f"{frames}.at(-1).click()")
        browser.wait_for("state.result.labels[0].name === 'green' && !state.running")
        browser.run("change('without', 1, true)")
        browser.wait_for(f"!{frames}.at(-1).ariaLabel.includes('green')")
        browser.run(f"{frames}[0].click()")
        browser.wait_for("state.shown.file === state.file && !state.running")
        assert browser.run("state.result.labels[0].name") == "red"
        assert browser.run("state.without.size") == 1
        (tmp_path / "no.webm").write_bytes(b"no video")
        browser.choose_file("#file", tmp_path / "no.webm")
        browser.wait_for("$('problem').textContent.includes('cannot play')")
        browser.choose_file("#file", tmp_path / "clip.webm")
        browser.wait_for(f"{frames}.length > 3")
        picture = tmp_path / "a.png"
        cv2.imwrite(str(picture), np.zeros((40, 40, 3), np.uint8))
        browser.choose_file("#file", picture)  # Another one: the strip is gone.
        browser.wait_for("$('strip').hidden && state.result.width && !state.running")
        assert browser.run(f"{frames}.length") == 0
        assert not browser.problems()
