"""A web server of one's own, with the faults that real ones have."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What a server answers, by path, and what it was asked.

    Attributes:
        files: bytes by path.
        breaks: by path, how many bytes each of the next answers sends before the connection breaks.
        ranges: whether it can send the rest of a file.
        asked: (path, Range header) of every request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.breaks, self.ranges = files, dict[str, list[int]](), True
        self.asked: list[tuple[str, str | None]] = []
        self.address = ""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve a site on this machine alone while the context is open."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.path, wanted))
            data = site.files.get(self.path)
            if data is None:
                return self.send_error(404)
            start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and site.ranges else 0
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            breaks = site.breaks.get(self.path, [])
            self.wfile.write(data[start : start + breaks.pop(0)] if breaks else data[start:])
            self.close_connection = True
            return None

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
