"""A judge that says what it is told to, over real HTTP, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedJudge:
    """replies: in order, a text or an HTTP status; the last one is repeated."""

    def __init__(self, port: int, replies: list[str | int]) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.replies = replies
        self.requests: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []

    @property
    def user_prompts(self) -> list[str]:
        return [request.get("messages", request.get("input"))[-1]["content"] for request in self.requests]


@contextlib.contextmanager
def scripted_judge(*replies: str | int) -> Iterator[ScriptedJudge]:
    """A judge on a free port of loopback, gone when the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.tokens.append(self.headers.get("Authorization"))
            reply = judge.replies[min(len(judge.requests), len(judge.replies) - 1)]
            judge.requests.append(asked)
            body: dict[str, Any]
            if isinstance(reply, int):
                body = {"error": {"type": "server_error", "message": "scripted"}}
            elif self.path.endswith("/responses"):
                content = [{"type": "output_text", "text": reply}]
                thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "[[A=B]]"}]}
                body = {"output": [thought, {"type": "message", "role": "assistant", "content": content}]}
            else:
                body = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
            data = json.dumps(body).encode()
            self.send_response(reply if isinstance(reply, int) else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge = ScriptedJudge(server.server_port, list(replies))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
