"""A server on this machine that speaks as much of OpenAI's protocol as a judge is asked in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Given = tuple[int, Any] | None
"""The status and the text of an answer; None does not answer."""


class Server:
    """Answers each request as a function of its number and its body says; remembers all of them."""

    def __init__(self, answers: Callable[[int, dict[str, Any]], Given]) -> None:
        self.answers = answers
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.address = ""
        self.over = threading.Event()


@contextmanager
def serving(answers: Callable[[int, dict[str, Any]], Given]) -> Iterator[Server]:
    """A server on this machine."""
    server, lock = Server(answers), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.seen)
                server.seen.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
            given = server.answers(number, body)
            if given is None:
                server.over.wait(20)
                return
            status, said = given
            content = said if isinstance(said, bytes) else json.dumps(
                {"choices": [{"message": {"role": "assistant", "content": said}}]}
            ).encode()  # fmt: skip
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{found.server_port}/v1"
        try:
            yield server
        finally:
            server.over.set()
            found.shutdown()
            thread.join()
