"""A small web server that behaves as badly as it is told to."""
from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

PAGE = b"<!DOCTYPE html>\n<html><title>Please log in</title></html>"


@dataclass
class Served:
    """One address: its content, and what goes wrong with it."""
    content: bytes
    ranges: bool = True                # False: answers 200 and everything, whatever was asked
    tag: str | None = '"1"'
    drops: list[int] = field(default_factory=list)      # the next answers end after so many bytes, with a reset
    short: list[int] = field(default_factory=list)      # the same, in good order: the connection is closed
    stalls: list[int] = field(default_factory=list)     # the same, and then nothing comes any more
    status: list[int] = field(default_factory=list)     # the next answers are these errors
    shift: int = 0                     # a 206 begins so many bytes beside what was asked
    length: bool = True                # False: no Content-Length, no total in Content-Range
    goes_to: str | None = None         # redirect
    always_partial: bool = False       # a 206 that nobody asked for
    unasked: int = 0                   # every answer is a 206 from this byte on
    delay: float = 0                   # seconds before the first byte
    chunked: bool = False
    unsatisfiable: int = 0             # so many ranges are answered with 416
    ignores_if_range: bool = False


class FileServer:
    """`files` maps paths to what they do; `asked` lists (path, Range or None) of every request."""

    def __init__(self):
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.closing = Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"owner": self}))
        self.http.daemon_threads = True

    def address(self, path: str) -> str:
        """Where a path is found."""
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def put(self, path: str, content: bytes, **behaviour) -> str:
        """Serve something; returns its address."""
        self.files[path] = Served(content, **behaviour)
        return self.address(path)


class Handler(BaseHTTPRequestHandler):
    """Answers as the path's `Served` says."""
    owner: FileServer

    def do_GET(self) -> None:
        """One request."""
        wanted = self.headers.get("Range")
        self.owner.asked.append((self.path, wanted))
        file = self.owner.files.get(self.path)
        if file is None or file.status:
            return self.send_error(file.status.pop(0) if file else 404)
        if file.goes_to:
            self.send_response(302)
            self.send_header("Location", file.goes_to)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(wanted[6:-1]) if wanted and file.ranges else 0
        if self.headers.get("If-Range") not in (None, file.tag) and not file.ignores_if_range:
            start = 0                                       # the file has changed: all of it
        if start and file.unsatisfiable:
            file.unsatisfiable -= 1
            return self.send_error(416)
        start = file.unasked or max(start + (file.shift if start else 0), 0)
        self.answer(file, start, bool(start) or file.always_partial)

    def answer(self, file: Served, start: int, partial: bool) -> None:
        """Head and body."""
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content) if file.length else '*'}")
        if file.length and not file.chunked:
            self.send_header("Content-Length", str(len(file.content) - start))
        if file.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        if file.tag:
            self.send_header("ETag", file.tag)
        if file.content.startswith(b"<!DOCTYPE"):
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.owner.closing.wait(file.delay)
        self.body(file, file.content[start:])

    def body(self, file: Served, rest: bytes) -> None:
        """The bytes, as far as they go."""
        fault = next((name for name in ("drops", "short", "stalls") if getattr(file, name)), None)
        cut = getattr(file, fault).pop(0) if fault else None
        rest = rest[:cut]
        self.wfile.write(b"%x\r\n%b\r\n" % (len(rest), rest) if file.chunked else rest)
        if file.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if fault == "stalls":
            self.owner.closing.wait(30)
        if fault == "drops":                                  # RST instead of FIN, as when a cable is pulled
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_) -> None:
        """Silence."""


@contextmanager
def file_server():
    """A server for the length of a test."""
    server = FileServer()
    thread = Thread(target=server.http.serve_forever, kwargs={"poll_interval": .02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
