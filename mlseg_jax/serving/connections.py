"""Connections over which requests come: how many, and how slow they may be."""

import contextlib
import http.server
import io
import logging
import socket
import sys
import threading
import time

logger = logging.getLogger(__name__)

CONNECTION_SECONDS = 20
"""Silence after which a connection is closed."""

REQUEST_SECONDS = 120
"""In which all of a request must arrive, however often a byte of it does."""

MAX_CONNECTIONS = 256

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
    b"Retry-After: 2\r\nConnection: close\r\n\r\n"
)
"""For a connection too many."""


class LimitedServer(http.server.ThreadingHTTPServer):
    """One thread for each connection, and no more than `MAX_CONNECTIONS`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple, handler: type):
        self.connections = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request, client_address) -> None:
        """Begins a thread, or turns a connection away."""
        if self.connections.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # No thread was begun.
                self.connections.release()
                raise
            return
        with contextlib.suppress(OSError):
            request.sendall(FULL)
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address) -> None:
        """That a client has hung up is no error of ours."""
        if isinstance(sys.exception(), OSError):
            logger.debug("%s has hung up", client_address)
        else:
            logger.exception("a connection failed")


class Incoming(io.RawIOBase):
    """What a client sends; TimeoutError after ``end``, of the monotonic clock."""

    def __init__(self, connection: socket.socket):
        self.connection, self.end = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = min(CONNECTION_SECONDS, self.end - time.monotonic())
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(CONNECTION_SECONDS)


class TimedHandler(http.server.BaseHTTPRequestHandler):
    """Whose requests must arrive within `REQUEST_SECONDS`."""

    timeout = CONNECTION_SECONDS

    def setup(self) -> None:
        super().setup()
        self._incoming = Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.end = time.monotonic() + REQUEST_SECONDS
        super().handle_one_request()

    def _discard(self, left: int) -> None:
        """Reads what was not wanted, or the sender would not see the answer."""
        self._incoming.end = time.monotonic() + 5
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0:
                part = self.rfile.read1(2**16)
                if not part:
                    return
                left -= len(part)
        except OSError:
            return  # Nobody is there any more, or nothing comes.
