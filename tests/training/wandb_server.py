"""A stand-in for W&B's API, as far as a run needs it: it takes the run, its history and its end, and notes what it was sent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    url: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Variables of the requests that made or changed a run."""
    streamed: list[dict[str, Any]] = field(default_factory=list)
    """What came of history, summary and end."""
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    used: list[dict[str, Any]] = field(default_factory=list)
    broken: bool = False
    """Whether it answers everything with 500 from now on."""

    @property
    def history(self) -> list[dict[str, Any]]:
        files = [body.get("files", {}).get("wandb-history.jsonl") for body in self.streamed]
        return [json.loads(line) for file in files if file for line in file["content"]]

    @property
    def exit_code(self) -> int | None:
        return next((body["exitcode"] for body in self.streamed if body.get("complete")), None)


@contextmanager
def serving(broken: bool = False) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            if server.broken:
                self._answer({}, 500)
            elif self.path == "/graphql":
                self._answer({"data": self._graphql(json.loads(data))})
            elif self.path.endswith("/file_stream"):
                server.streamed.append(json.loads(data))
                self._answer({})
            else:
                self._answer({})

        do_GET = do_PUT = do_POST

        def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
            query, given = request["query"], request.get("variables") or {}
            if "viewer" in query:
                return {"viewer": {"id": "1", "entity": "team", "username": "someone", "flags": "{}", "teams": {"edges": []}}}
            if "createRunFiles" in query:
                files = [{"name": name, "uploadUrl": f"{server.url}/upload/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
            if "query ArtifactType" in query:
                return {"project": {"artifact": None}}
            if "mutation CreateArtifact " in query:
                server.artifacts.append(given["input"])
                return {"createArtifact": {"artifact": {"id": "1", "state": "COMMITTED", "artifactSequence": {"id": "1"}}}}
            if "mutation UseArtifact" in query:
                server.used.append(given["input"])
                return {"useArtifact": {"artifact": {"id": "1"}}}
            if "upsertBucket" not in query:
                return {}
            server.runs.append(given)
            project = {"name": given.get("project") or "p", "entity": {"name": "team"}}
            bucket = {
                "id": "1",
                "name": given["name"],
                "displayName": given.get("displayName"),
                "config": given.get("config") or "{}",
                "project": project,
                "historyLineCount": 0,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}

        def _answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}", broken=broken)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
