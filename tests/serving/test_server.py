"""The API, as its users and as those who mean it ill know it."""

import base64
import concurrent.futures
import http.client
import io
import json
import socket
import struct
import time
import types
import zlib

import cv2
import numpy as np
import pytest
from fake_service import COLOURS, NAMES, K, picture, running, wait_for
from PIL import Image

from mlseg_jax.errors import UserError
from mlseg_jax.serving.choice import KEYS
from mlseg_jax.serving.limits import Limits
from mlseg_jax.serving.server import Handler, open_server


def png(image=None):
    return cv2.imencode(".png", (picture() if image is None else image)[..., ::-1])[
        1
    ].tobytes()


def ask(port, path, body=None, method=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    if body is not None:
        names.setdefault("Content-Type", "image/png")
    try:
        connection.request(
            method or ("GET" if body is None else "POST"), path, body, names
        )
        answer = connection.getresponse()
        data = answer.read()
        is_json = answer.headers["Content-Type"].startswith("application/json")
        return answer.status, json.loads(data) if is_json else data
    finally:
        connection.close()


@pytest.fixture(scope="module")
def server():
    with running(Limits(bytes=50_000, pixels=10_000, windows=50)) as running_server:
        yield running_server


def unpacked(text, kind, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind).reshape(shape)


def test_a_picture_becomes_labels_and_a_map(server):
    service, port = server
    status, result = ask(port, "/segment?top=2", png())
    assert status == 200 and (result["width"], result["height"]) == (60, 40)
    labels = result["labels"]
    assert [x["name"] for x in labels] == ["red", "green", "blue"]
    assert labels[1]["pixel_share"] == pytest.approx(0.4, abs=0.02)
    assert labels[2]["pixel_share"] == pytest.approx(200 / 2400, abs=0.02)
    assert {x["name"] for x in result["others"]} == set(NAMES[3:])
    places = unpacked(result["top"]["places"], "<u2", (2, 40, 60))
    percent = unpacked(result["top"]["percent"], np.uint8, (2, 40, 60))
    assert labels[places[0, 35, 5]]["name"] == "green" and percent[0, 35, 5] > 90
    assert np.all(percent[0] >= percent[1])
    status, data = ask(port, "/segment", png(), Accept="image/png")
    label_map = np.asarray(Image.open(io.BytesIO(data)))
    assert status == 200 and label_map.dtype == np.uint8
    assert label_map[35, 5] == 1 and label_map[10, 20] == 2 and label_map[2, 2] == 0


def test_another_selection_does_not_encode_again(server):
    service, port = server
    before = service.predictor.model.encodings
    _, first = ask(port, "/pictures", png())
    count = service.predictor.model.encodings - before
    address = f"/pictures/{first['picture']}"
    names = lambda query: [  # noqa: E731
        x["name"] for x in ask(port, address + query)[1]["labels"]
    ]
    assert names("?k=1") == ["red"]
    assert names("?allowed=blue&allowed=a,%20b") == ["blue", "a, b"]
    assert names("?without=%230") == ["green", "blue", NAMES[3]]
    assert set(names("?k=2&also=grey")) == {"red", "green", "grey"}
    least = "?k=2&also=grey&minimum_score=0.9"
    assert names(least) == ["red", "grey"]
    assert set(names("?allowed=blue&also=grey")) == {"blue", "grey"}
    assert "grey" not in names("?also=grey&without=grey")
    _, small = ask(port, address + "?longest=30")
    assert (small["width"], small["height"]) == (30, 20)
    assert service.predictor.model.encodings - before == count
    assert ask(port, "/pictures/no-such-name")[0] == 410
    status, answer = ask(port, address + "?scales=1")
    assert status == 400 and "when you send the picture" in answer["error"]
    before = service.predictor.model.encodings
    _, larger = ask(port, "/segment?scales=1,2&minimum_score=0.9", png())
    assert service.predictor.model.encodings - before == 2  # 4 and 12 windows
    assert (larger["width"], larger["height"]) == (60, 40)


def test_other_addresses(server):
    _, port = server
    assert ask(port, "/health")[1]["status"] == "ok"
    assert ask(port, "/labels?search=RE")[1]["labels"] == [
        {"name": "red", "class_id": 0},
        {"name": "green", "class_id": 1},
        {"name": "grey", "class_id": 5},
    ]
    assert ask(port, "/model")[1]["largest_k"] == K
    described = ask(port, "/openapi.json")[1]["paths"]
    parameters = {
        x["$ref"].rsplit("/", 1)[1] for x in described["/segment"]["post"]["parameters"]
    }
    assert parameters == set(KEYS)
    assert {"/segment", "/labels", "/health", "/pictures/{picture}"} <= set(described)
    status, page = ask(port, "/")
    assert status == 200 and b"<title>mlseg_jax" in page and b"{{nonce}}" not in page
    for path in ("/../etc/passwd", "/static/..%2f..%2fsetup.py", "//x", "/examples/0"):
        assert ask(port, path)[0] in (404, 400)
    for path, method, allowed in (
        ("/segment", "DELETE", "POST"),
        ("/segment", "GET", "POST"),
        ("/labels", "POST", "GET, HEAD"),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Allow"]) == (405, allowed)
        connection.close()


@pytest.mark.parametrize(
    "query, words",
    [
        ("k=0", "from 1 to 4"),
        ("k=99", "from 1 to 4"),
        ("k=x", "from 1 to 4"),
        ("k=0000000005", "from 1 to 4"),
        ("k=" + "9" * 5000, "from 1 to 4"),
        ("without=%23" + "9" * 5000, "ids end at 5"),
        ("allowed=gren", "did you mean 'green'"),
        ("allowed=%2399", "ids end at 5"),
        ("minimum_score=nan", "from 0 to 1"),
        ("scales=1,nan", "up to 8 numbers from 0.1 to 4"),
        ("scales=" + ",1" * 9, "up to 8 numbers"),
        ("colour=1", "no parameter 'colour'"),
        ("&".join(f"without=%23{i}" for i in range(6)), "No label is left"),
    ],
)
def test_wrong_requests_get_a_sentence(server, query, words):
    status, answer = ask(server[1], f"/segment?{query}", png())
    assert status == 400 and words in answer["error"]


def bomb():
    """A PNG of 100,000 x 100,000 pixels in a few bytes."""
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x")


def test_hostile_bodies(server):
    _, port = server
    for status, body, headers in (
        (413, bomb(), {}),
        (413, png(np.zeros((200, 200, 3), np.uint8)), {}),
        (413, b"x" * 60_000, {}),
        (413, b"", {"Content_Length": "0" * 18 + "60000"}),
        (413, b"", {"Content_Length": "9" * 5000}),
        (415, png()[:100], {}),
        (415, b"P6 2 2 255 " + bytes(12), {}),
        (413, png(np.zeros((2, 3000, 3), np.uint8)), {}),
        (415, b"GIF89a and nothing more", {}),
        (415, png(), {"Content_Type": "text/html"}),
        (400, b"", {}),
        (403, png(), {"Origin": "https://elsewhere.example"}),
        (403, png(), {"Host": "elsewhere.example"}),
        (403, b"x" * 80_000, {"Host": "elsewhere.example"}),
        (400, png(), {"Host": "["}),
        (411, png(), {"Content_Length": "", "Transfer_Encoding": "chunked"}),
    ):
        got, answer = ask(port, "/segment", body, **headers)
        assert got == status, (status, answer)
        assert answer["error"].endswith(".") and "/" not in answer["error"][:1]
    for query in ("top=8", "longest=8192"):
        status, answer = ask(port, f"/segment?{query}", png())
        assert status == 413 and "smaller longest" in answer["error"]
    with socket.create_connection(("127.0.0.1", port)) as raw:  # hangs up
        raw.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\n")
        raw.sendall(b"Content-Length: 5000\r\n\r\nabc")
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 411 " in raw.recv(100)
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30")
        raw.sendall(b"\r\n\r\nGET /health HTTP/1.1\r\nHost: [\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        answer = raw.makefile("rb").read()
        assert answer.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in answer
    assert ask(port, "/health?" + "&" * 20_001)[0] == 400
    assert ask(port, "/segment", png())[0] == 200


def test_a_hundred_at_a_time_and_a_full_queue():
    limits = Limits(queue=10, each_client=8, kept=3)
    with running(limits) as (service, port):
        model = service.predictor.model
        model.may_go_on.clear()
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            waiting = [
                pool.submit(ask, port, "/pictures?top=1", png()) for _ in range(100)
            ]
            end = time.monotonic() + 30
            while sum(x.done() for x in waiting) < 92 and time.monotonic() < end:
                time.sleep(0.02)
            model.may_go_on.set()
            statuses = [x.result()[0] for x in waiting]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 8
        assert len(service._kept) == 3  # no more than is said
        assert not len(service.queue)
        assert ask(port, "/segment", png())[0] == 200
    with running(Limits(queue=0)) as (_, port):
        status, answer = ask(port, "/segment", png())
        assert status == 503 and "try again" in answer["error"]


def test_answers_are_sent_in_pieces():
    """For a connection's patience is that of one piece."""
    sent = []
    handler = Handler.__new__(Handler)
    handler.wfile = types.SimpleNamespace(write=lambda data: sent.append(len(data)))
    handler.request_version, handler.requestline = "HTTP/1.1", ""
    handler.command, handler.close_connection = "GET", False
    handler.client_address = ("127.0.0.1", 1)
    handler._send(200, "image/png", bytes(200_000))
    assert max(sent) <= 2**16 and sum(sent[1:]) == 200_000


def test_behind_another_server():
    outside = {"Host": "segment.example:443", "Origin": "https://segment.example"}
    with running(public="segment.example") as (_, port):
        assert ask(port, "/segment", png(), **outside)[0] == 200
        for other in ({"Host": "other.example"}, {"Origin": "https://other.example"}):
            assert ask(port, "/segment", png(), **(outside | other))[0] == 403


def test_slow_and_too_many_connections(server, monkeypatch, caplog):
    service, port = server
    monkeypatch.setattr("mlseg_jax.serving.connections.REQUEST_SECONDS", 0.3)
    head = b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(head + b"ab")
        assert b" 408 " in raw.recv(100)
    with socket.create_connection(("127.0.0.1", port)) as raw:  # hangs up at once
        raw.sendall(head)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    monkeypatch.undo()
    assert ask(port, "/health")[0] == 200
    assert not caplog.records
    monkeypatch.setattr("mlseg_jax.serving.connections.MAX_CONNECTIONS", 1)
    with running() as (_, port), socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET")
        with socket.create_connection(("127.0.0.1", port)) as other:
            assert b" 503 " in other.recv(100)


def test_nothing_is_computed_for_those_who_hung_up():
    """Neither while they wait nor, after the batch at hand, in their turn."""
    with running(Limits(kept_bytes=10)) as (service, port):
        model = service.predictor.model
        model.may_go_on.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, port, "/pictures", png())
            wait_for(lambda: model.waiting == 1)
            with sending(port, "/segment"):
                wait_for(lambda: len(service._turns) == 1)
            model.may_go_on.set()
            status, answer = first.result()
        assert status == 200 and "picture" not in answer  # too large to be kept
        wait_for(lambda: service.queue.done == 2)
        assert model.encodings == 1
        model.may_go_on.clear()
        with sending(port, "/segment?scales=2,4"):  # 12 + 40 windows
            wait_for(lambda: model.waiting == 2)
        model.may_go_on.set()
        wait_for(lambda: service.queue.done == 3)
        assert model.encodings == 2
    with running(Limits(compute=0.0)) as (_, port):
        status, answer = ask(port, "/segment", png())
        assert status == 503 and "more than 0 seconds" in answer["error"]


def sending(port, path):
    """A connection on which a picture was sent."""
    raw = socket.create_connection(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(png())}"
    raw.sendall(head.encode() + b"\r\n\r\n" + png())
    return raw


def test_pictures_that_wait_are_encoded_together():
    """Whose parts do not get mixed up, and of which a bad one harms no other."""
    colours = {"red": 0, "green": 1, "blue": 2, "grey": 5}
    body = lambda i: png(np.full((32, 32, 3), COLOURS[i], np.uint8))  # noqa: E731
    with running() as (service, port):
        model = service.predictor.model
        model.may_go_on.clear()
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            send = lambda data, query="": pool.submit(  # noqa: E731
                ask, port, f"/segment?k=1{query}", data
            )
            first = send(png())
            wait_for(lambda: model.waiting == 1)
            answers = {name: send(body(i)) for name, i in colours.items()}
            bad = send(png()[:100])
            wait_for(lambda: len(service._turns) == 5)
            large = send(png(), "&scales=1,2")
            wait_for(lambda: len(service._turns) == 6)
            more = []
            for _ in range(10):
                more.append(send(body(5)))
                wait_for(lambda: len(service._turns) == 6 + len(more))
            model.may_go_on.set()
            for name, answer in answers.items():
                status, result = answer.result()
                assert status == 200 and result["labels"][0]["name"] == name
            assert bad.result()[0] == 415
            assert first.result()[0] == large.result()[0] == 200
            assert {each.result()[0] for each in more} == {200}
        # 4 windows; 4 pictures of one; 4 + 12 windows, for which there was no room; and
        # ten pictures of one, of which the ninth stays in the queue.
        assert model.batches == [4, 4, 8, 8, 8, 2]
        assert not service._looking._jobs


def test_a_port_that_is_taken_is_said(server):
    with pytest.raises(UserError, match="choose another --port"):
        open_server("127.0.0.1", server[1], server[0])
