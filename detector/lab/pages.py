# SPDX-License-Identifier: Apache-2.0
"""Pages of metrics of relays that are made up, served on loopback: for trying engines with many relays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_KIND = "text/plain; version=0.0.4; charset=utf-8"


class Page:
    """What a scrape gets.

    Attributes:
        text: makes the page anew for each scrape; whoever tests may put another one here.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self.text = text
        self.address = ""


@contextmanager
def served(text: Callable[[], str]) -> Iterator[Page]:
    """Serve a page on a free port of loopback until the ``with`` block ends."""
    page = Page(text)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", _KIND)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
            """Nothing to say."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    page.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="pages", daemon=True)
    thread.start()
    try:
        yield page
    finally:
        server.shutdown()
        server.server_close()
