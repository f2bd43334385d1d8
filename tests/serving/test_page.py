"""The page in a real browser."""

import http.client
import json

import cv2
from fake_service import NAMES, picture, running


def test_the_page_in_a_browser(browser, tmp_path):
    path = tmp_path / "a picture.png"
    cv2.imwrite(str(path), picture()[..., ::-1])
    with running() as (service, port):
        use(browser, port, path, service, tmp_path)
        assert not browser.problems()


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
