"""Published weights by name, from a server that is slow, broken or false."""

import contextlib
import http.server
import threading
import urllib.request

import pytest

from mlseg_jax.errors import UserError
from mlseg_jax.pretrained import download
from mlseg_jax.settings.resolve import resolve
from mlseg_jax.settings.weights import PUBLISHED, Published

DATA = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        server = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        if self.path == "/moved.npz":
            self.send_response(302)
            self.send_header("Location", "/file.npz")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200:
            self.send_error(status)
            return
        start, size = 0, len(server.data)
        same = self.headers.get("If-Range") in (None, server.tag)
        if self.headers.get("Range") and server.continues and same:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            status = 206 if start < size else 416
        data = server.data[start:]
        self.send_response(status)
        if server.tag:
            self.send_header("ETag", server.tag)
        if status == 206:
            total = size + server.lies
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        elif status == 416:
            self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(data)
        self.wfile.write(data[:cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    urllib.request.install_opener(None)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.data, running.continues, running.seen = DATA, True, []
    running.cuts, running.statuses, running.tag, running.lies = [], [], '"one"', 0
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    with contextlib.closing(running.socket):
        yield running
        running.shutdown()
        thread.join()


def source(server, path="/file.npz", **more):
    port = server.server_address[1]
    return Published(f"http://127.0.0.1:{port}{path}", "MIT", "", **more)


def test_a_file_comes_once(server):
    path = download.fetch("some", source(server, "/moved.npz"))
    assert path.read_bytes() == DATA and path.suffix == ".npz"
    assert download.fetch("some", source(server)) == path
    assert [seen[0] for seen in server.seen] == ["/moved.npz", "/file.npz"]


def test_a_broken_download_is_taken_up(server):
    server.cuts = [300_000, 200_000]
    path = download.fetch("some", source(server))
    assert path.read_bytes() == DATA
    wanted = [None, "bytes=300000-", "bytes=500000-"]
    assert [seen[1] for seen in server.seen] == wanted
    # A server that cannot continue sends all of it again.
    server.cuts, server.continues, server.seen = [300_000], False, []
    assert download.fetch("other", source(server)).read_bytes() == DATA
    assert len(server.seen) == 2


def test_what_cannot_be_had_is_said_with_where_to_put_it(server, tmp_path):
    server.statuses = [503, 200]
    assert download.fetch("busy", source(server)).read_bytes() == DATA
    server.statuses = [404]
    with pytest.raises(UserError, match="says 404.*put it at .*gone.npz"):
        download.fetch("gone", source(server))
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(UserError, match="only 1,000 of 1,024,000"):
        download.fetch("cut", source(server))
    part = tmp_path / "cache/mlseg_jax/weights/cut.npz.part"
    assert part.stat().st_size == 1000  # kept for the next time
    nobody = Published("http://127.0.0.1:9/file.npz", "MIT", "")
    with pytest.raises(UserError, match="fetch that file by other means"):
        download.fetch("nobody", nobody)


def test_another_file_than_it_should_be_is_not_kept(server):
    with pytest.raises(UserError, match="not 0123456789"):
        download.fetch("some", source(server, sha256="0123456789"))
    path = download.fetch("some", source(server))
    path.unlink()  # held to what came the first time
    server.data = DATA[::-1]
    with pytest.raises(UserError, match="nothing was kept"):
        download.fetch("some", source(server))
    assert not path.exists()


def test_parts_of_two_versions_are_not_put_together(server, tmp_path):
    class Another(list):
        """The file is replaced while the first answer breaks off."""

        def pop(self, i):
            server.data, server.tag = DATA[::-1], '"two"'
            return super().pop(i)

    server.cuts = Another([300_000])
    assert download.fetch("some", source(server)).read_bytes() == DATA[::-1]
    # Of a server that names no versions, lengths tell them apart.
    server.tag, server.cuts, server.seen, server.lies = None, [300_000], [], 5
    assert download.fetch("other", source(server)).read_bytes() == server.data
    assert [seen[1] for seen in server.seen] == [None, "bytes=300000-", None]


def test_a_part_that_is_whole_is_done(server, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "_check", stopped)
        download.fetch("some", source(server))
    server.cuts = [10] * 8  # would not be enough
    assert download.fetch("some", source(server)).read_bytes() == DATA
    # Many breaks do not end it while each brings something.
    server.cuts = [100_000] * 9
    path = download.fetch("other", source(server))
    assert path.read_bytes() == DATA
    assert {each.suffix for each in path.parent.iterdir()} <= {
        *(".npz", ".lock", ".sha256")
    }


def test_a_file_is_held_to_its_record(server, monkeypatch):
    path = download.fetch("some", source(server))
    read = []
    digest = download._digest
    monkeypatch.setattr(download, "_digest", lambda p: read.append(p) or digest(p))
    download.fetch("some", source(server))
    assert not read  # of the same size and time
    path.touch()
    download.fetch("some", source(server))
    download.fetch("some", source(server))
    assert read == [path]
    path.write_bytes(DATA[:-1])
    with pytest.raises(UserError, match="changed, or is not whole; remove it"):
        download.fetch("some", source(server))


def test_weights_that_one_must_ask_for(tmp_path):
    for name in ("dinov3_vitb16", str(tmp_path / "dinov3_b16")):
        with pytest.raises(UserError, match="licence: ask for them at https.*its path"):
            download.weight_file(name)


def test_names_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = []

    def fetch(name, source):
        fetched.append(name)
        return tmp_path / "x"

    monkeypatch.setattr(download, "fetch", fetch)
    assert download.weight_file("augreg_b16_384") == str(tmp_path / "x")
    assert download.weight_file("weights/mine.npz") == "weights/mine.npz"
    (tmp_path / "swin_t").write_text("mine")
    assert download.weight_file("swin_t") == "swin_t"
    assert fetched == ["augreg_b16_384"]
    with pytest.raises(UserError, match="did you mean 'augreg_b16_384'.*--list"):
        download.weight_file("augreg_b16_382")
    listed = download.table()
    assert all(f"\n{name} " in listed for name in PUBLISHED)
    assert all(each.address.startswith("https://") for each in PUBLISHED.values())


def test_a_name_stays_one_in_the_saved_configuration(tmp_path, monkeypatch):
    from tiny import tiny_config

    monkeypatch.chdir(tmp_path)
    named = resolve(tiny_config({"init": "dinov2_vitb14"}), 20)
    assert named.init == "dinov2_vitb14"
    assert resolve(tiny_config({"init": "a.npz"}), 20).init == str(tmp_path / "a.npz")
