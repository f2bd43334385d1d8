"""The page and the API over HTTP, with the standard library alone."""

import importlib.resources
import ipaddress
import json
import logging
import secrets
import select
import socket
import urllib.parse
from http import HTTPStatus

from mlseg_jax.errors import UserError
from mlseg_jax.serving.choice import Choice, parse_choice, whole_number
from mlseg_jax.serving.connections import LimitedServer, TimedHandler
from mlseg_jax.serving.page_files import OVER_HTTP, facts, page
from mlseg_jax.serving.problems import RequestProblem
from mlseg_jax.serving.service import Service

logger = logging.getLogger(__name__)

PICTURES = "/pictures"
POSTED = (PICTURES, "/segment")
READ = ("/", "/health", "/labels", "/model", "/openapi.json", "/favicon.ico")

PART = 2**16
"""Bytes of an answer that are sent at a time."""
JSON = "application/json; charset=utf-8"


class Server(LimitedServer):
    """One thread for each connection; the model is shared."""

    def __init__(self, address: tuple[str, int], service: Service, public: str | None):
        self.service, self.public = service, public
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)


class Handler(TimedHandler):
    """One connection."""

    server: Server
    server_version = "mlseg_jax"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802 (the standard library's name)
        self._answer(self._get)

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._answer(self._post)

    def do_DELETE(self) -> None:  # noqa: N802
        self._answer(self._nothing)

    do_PUT = do_PATCH = do_OPTIONS = do_DELETE  # noqa: N815

    def log_message(self, format: str, *args) -> None:
        logger.debug("%s %s", self.client_address[0], format % args)

    # ---------------------------------------------------------------------- requests

    def _answer(self, how) -> None:
        """Runs a request; whatever goes wrong becomes a sentence and a status."""
        chunked = "Transfer-Encoding" in self.headers
        self._unread = chunked or self.headers.get("Content-Length", "0") != "0"
        # A body that nobody reads must not be taken for the next request.
        self.close_connection |= chunked or (self._unread and self.command != "POST")
        try:
            how(*self._address())
        except RequestProblem as problem:
            self._problem(problem.status, problem.sentence)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # Nobody listens any more.
        except MemoryError:
            self._problem(503, "There is not enough memory for this picture.")
        except Exception:
            logger.exception("a request could not be answered")
            self._problem(500, "The server could not do this; its log says why.")
        if self._unread:
            self.close_connection = True
            self._discard(2 * self.server.service.limits.bytes)

    def _address(self) -> tuple[str, dict]:
        """Path and query, where the request may be answered at all."""
        try:
            self._check_origin()
            parts = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(
                parts.query, keep_blank_values=True, max_num_fields=20_000
            )
        except ValueError as error:  # Host: [, or very many &
            raise RequestProblem(
                400, "The address, Host or Origin is malformed, or has too many parts."
            ) from error
        return urllib.parse.unquote(parts.path), query

    def _check_origin(self) -> None:
        """Pages of other sites may not use a server of this machine."""
        host = self.headers.get("Host", "")
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        own, public = self.server.server_address[0], self.server.public
        if is_loopback(own) and not is_loopback(name) and name != public:
            raise RequestProblem(
                403,
                "This server answers for its own machine alone; behind another one, "
                "start it with the name of that: --public_host.",
            )
        origin = urllib.parse.urlsplit(self.headers.get("Origin", ""))
        if origin.geturl() and origin.netloc != host and origin.hostname != public:
            raise RequestProblem(403, "Pages of other sites may not use this server.")

    def _nothing(self, path: str, query: dict) -> None:
        allowed = methods(path)
        if not allowed:
            raise RequestProblem(404, "There is nothing at this address.")
        raise RequestProblem(
            405, f"{self.command} is no method of this address; {allowed} is."
        )

    def _get(self, path: str, query: dict) -> None:
        service = self.server.service
        if path == "/":
            self._page()
        elif path == "/health":
            self._send_json({"status": "ok", "done": service.queue.done})
        elif path == "/labels":
            self._labels(query)
        elif path == "/model":
            count, limits = len(service.examples), service.limits
            found = facts(service.predictor, service.usual, count)
            found |= {"largest_file": limits.bytes, "most_pixels": limits.pixels}
            self._send_json(found)
        elif path == "/openapi.json":
            folder = importlib.resources.files("mlseg_jax.serving")
            self._send(200, JSON, (folder / "openapi.json").read_bytes())
        elif path == "/favicon.ico":
            self._send(204, "image/x-icon", b"")
        elif path.startswith("/examples/"):
            self._example(path.removeprefix("/examples/"))
        elif path.startswith(f"{PICTURES}/"):
            self._kept(path, query)
        else:
            self._nothing(path, query)

    def _post(self, path: str, query: dict) -> None:
        service, client = self.server.service, self.client_address[0]
        if path not in POSTED:
            self._nothing(path, query)
        choice = self._choice(query)
        data = self._body()
        with service.queue.one(client):
            seen, found = service.picture(data, choice, self._gone, self._wants_png())
            name = service.keep(seen) if path == PICTURES else None
        self._result(found, name)

    def _kept(self, path: str, query: dict) -> None:
        """``/pictures/NAME``: another selection for a picture that was sent before."""
        service, client = self.server.service, self.client_address[0]
        choice = self._choice(query)
        if choice.scales is not None:
            raise RequestProblem(
                400, "scales need the encoder; say them when you send the picture."
            )
        seen = service.kept(path.removeprefix(f"{PICTURES}/"))
        with service.queue.one(client):
            found = service.segment(seen, choice, self._gone, self._wants_png())
        self._result(found, None)

    def _wants_png(self) -> bool:
        return "image/png" in self.headers.get("Accept", "").split(",")[0]

    def _gone(self) -> bool:
        """Whether the sender has hung up."""
        try:
            ready = select.select([self.connection], [], [], 0)[0]
            return bool(ready) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _result(self, found: dict | bytes, name: str | None) -> None:
        if isinstance(found, bytes):
            self._send(200, "image/png", found)
            return
        self._send_json(found if name is None else found | {"picture": name})

    def _example(self, number: str) -> None:
        examples = self.server.service.examples
        place = whole_number(number)
        if place is None or place >= len(examples):
            raise RequestProblem(404, "There is no such example.")
        self._send(200, "image/jpeg", examples[place])

    def _labels(self, query: dict) -> None:
        text = query.get("search", [""])[-1]
        limit = whole_number(query.get("limit", ["50"])[-1])
        if limit is None or not 0 < limit <= 10_000:
            raise RequestProblem(400, "limit is a whole number from 1 to 10000.")
        service = self.server.service
        found = service.search(text, limit)
        self._send_json({"labels": found, "num_classes": len(service.names)})

    def _choice(self, query: dict) -> Choice:
        predictor = self.server.service.predictor
        return parse_choice(query, predictor.names, predictor.num_ranks)

    def _body(self) -> bytes:
        """The picture; read in one go, and no more than is allowed."""
        limit = self.server.service.limits.bytes
        length = whole_number(self.headers.get("Content-Length", ""))
        if length is None or "Transfer-Encoding" in self.headers:
            raise RequestProblem(411, "Say how long the picture is (Content-Length).")
        if length > limit:
            raise RequestProblem(
                413, f"The picture's file is larger than {limit:,} bytes; send less."
            )
        kind = self.headers.get("Content-Type", "image/*").partition(";")[0].strip()
        try:
            with self.server.service.arriving.one(self.client_address[0], length):
                data = self.rfile.read(length)
        except TimeoutError as error:
            raise RequestProblem(408, "The picture did not arrive in time.") from error
        if len(data) < length:
            raise ConnectionResetError
        self._unread = False
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise RequestProblem(
                415,
                f"The body must be the picture's file itself (image/jpeg, ... or "
                f"application/octet-stream), not {kind[:60]!r}.",
            )
        if not data:
            raise RequestProblem(400, "The request is empty; send a picture's file.")
        return data

    # ----------------------------------------------------------------------- answers

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
            f"media-src blob:; "
            f"connect-src 'self'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors 'none'"
        )
        self._send(
            200,
            "text/html; charset=utf-8",
            page(OVER_HTTP, nonce).encode(),
            {"Content-Security-Policy": policy},
        )

    def _problem(self, status: int, sentence: str) -> None:
        self.close_connection = True
        extra = {"Retry-After": "2"} if status in (429, 503) else {}
        if status == 405:
            extra["Allow"] = methods(urllib.parse.urlsplit(self.path).path)
        try:
            body = json.dumps({"error": sentence}).encode()
            self._send(status, JSON, body, extra)
        except (ConnectionError, TimeoutError):
            pass

    def _send_json(self, value: dict) -> None:
        self._send(200, JSON, json.dumps(value, ensure_ascii=False).encode())

    def _send(self, status: int, kind: str, body: bytes, extra=None) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in (headers | (extra or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), PART):  # each may take CONNECTION_SECONDS
            self.wfile.write(body[start : start + PART])


def methods(path: str) -> str:
    """Those that an address has, as the header Allow says them; "" of no address."""
    if path in POSTED:
        return "POST"
    below = path.startswith((f"{PICTURES}/", "/examples/"))
    return "GET, HEAD" if path in READ or below else ""


def is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def open_server(
    host: str, port: int, service: Service, public: str | None = None
) -> Server:
    """Bound, and not yet serving; ``public``: name of a server that hands requests on.

    Raises:
      UserError: the address cannot be had.
    """
    try:
        return Server((host, port), service, public)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"The server cannot be at {host}:{port} ({reason}); choose another --port."
        ) from error
