"""The report page of a run, served on this machine and refreshed while the run is under way."""

from __future__ import annotations

import logging
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from neural_tune.report import html
from neural_tune.report.record import read
from neural_tune.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def serve(directory: str | Path, port: int = 8123) -> ThreadingHTTPServer:
    """Return a server of the report page on 127.0.0.1; call its `serve_forever`, and `server_close` at the end.

    Args:
        directory: The run's folder.
        port: TCP port; 0 takes a free one (see `server_address`).

    Raises:
        ConfigError: `directory` is no run's folder.
        OSError: the port is taken.
    """
    folder = RunDirectory.existing(directory)

    class Handler(BaseHTTPRequestHandler):
        """Answers GET / with the page and GET /version with the state of the run."""

        def do_GET(self) -> None:
            """Answer one request."""
            if self.path == "/version":
                self._send(_version(folder), "text/plain")
            elif self.path in ("/", "/index.html"):
                version = _version(folder)
                self._send(html.page(read(folder.root), follow=True, version=version), "text/html")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Log instead of writing to stderr."""
            logger.debug(format, *args)

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def _version(folder: RunDirectory) -> str:
    """Return the sizes of what the page is made from: the journal only grows."""
    result = folder.root / "result.json"
    return f"{folder.journal.stat().st_size}-{result.stat().st_size if result.is_file() else 0}"
