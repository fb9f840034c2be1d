"""A hub on loopback: the parts of the hub's HTTP API that its client calls to push and to pull.

Written for tests, in memory, but real: the client talks HTTP to it, large files go through the
LFS batch protocol with their SHA-256 checked on arrival, commits are atomic and keep history.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token_of_this_test"
LARGE = 10_000  # bytes from which a file goes through LFS
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_KIND = "(?:models|datasets)"


@dataclass
class Commit:
    sha: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("0" * 40, {})])

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((c for c in self.commits if c.sha == revision), None)


@dataclass
class Hub:
    """What the server holds, for tests to look at and to break."""

    address: str = ""
    repos: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    written_large: int = 0

    def files(self, name: str) -> dict[str, bytes]:
        return self.repos[name].commits[-1].files


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        self.hub.requests.append(f"{self.command} {urlsplit(self.path).path}")

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json")

    def handle_method(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for method, pattern, handle in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method:
                    handle(self, body=body, **found.groupdict())
                    return
            raise Refused(404, message=f"no route {self.command} {path}")
        except Refused as refusal:
            headers = {"X_Error_Code": refusal.code} if refusal.code else {}
            text = json.dumps({"error": refusal.message}).encode()
            self.answer(text, refusal.status, X_Error_Message=refusal.message, **headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_method

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_writer(self) -> None:
        if not self.is_known:
            raise Refused(401, message="Invalid username or password.")

    def repo(self, name: str) -> Repository:
        found = self.hub.repos.get(name)
        if found is None or (found.private and not self.is_known):
            raise Refused(404 if self.is_known else 401, "RepoNotFound", "Repository not found")
        return found

    def commit(self, name: str, revision: str) -> Commit:
        found = self.repo(name).at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found


def create(handler: Handler, *, body: bytes) -> None:
    handler.check_writer()
    given = json.loads(body)
    name = "/".join(p for p in (given.get("organization"), given["name"]) if p)
    known = {"url": f"{handler.hub.address}/{name}", "name": name, "id": "1"}
    if name in handler.hub.repos:
        handler.answer_json({**known, "error": "You already created this model repo"}, status=409)
        return
    is_private = given.get("private") is True or given.get("visibility") == "private"
    handler.hub.repos[name] = Repository(is_private)
    handler.answer_json(known)


def validate(handler: Handler, *, body: bytes) -> None:
    front = json.loads(body)["content"].split("---")[1]
    errors = [] if "license:" in front else [{"message": "no license"}]
    handler.answer_json({"errors": errors, "warnings": []})


def info(handler: Handler, *, body: bytes, id: str, revision: str = "main") -> None:
    commit = handler.commit(id, revision)
    siblings = [{"rfilename": name} for name in commit.files]
    is_private = handler.repo(id).private
    known = {"id": id, "modelId": id, "sha": commit.sha, "private": is_private, "tags": []}
    handler.answer_json({**known, "siblings": siblings})


def tree(handler: Handler, *, body: bytes, id: str, revision: str) -> None:
    files = handler.commit(id, revision).files
    handler.answer_json(
        [{"type": "file", "path": n, "size": len(d), "oid": blob(d)} for n, d in files.items()]
    )


def preupload(handler: Handler, *, body: bytes, id: str, revision: str) -> None:
    handler.check_writer()
    handler.commit(id, revision)
    answers = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
            "shouldIgnore": False,
        }
        for file in json.loads(body)["files"]
    ]
    handler.answer_json({"files": answers})


def batch(handler: Handler, *, body: bytes, id: str) -> None:
    handler.check_writer()
    objects = []
    for item in json.loads(body)["objects"]:
        href = f"{handler.hub.address}/lfs/{item['oid']}"
        actions = {} if item["oid"] in handler.hub.large else {"upload": {"href": href}}
        objects.append({**item, **({"actions": actions} if actions else {})})
    handler.answer_json({"transfer": "basic", "objects": objects})


def put_large(handler: Handler, *, body: bytes, oid: str) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, message="the content has another SHA-256")
    handler.hub.large[oid] = body
    handler.hub.written_large += 1
    handler.answer()


def commit(handler: Handler, *, body: bytes, id: str, revision: str) -> None:
    handler.check_writer()
    files = dict(handler.commit(id, revision).files)
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = handler.hub.large[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    commits = handler.hub.repos[id].commits
    sha = hashlib.sha1(f"{len(commits)}{sorted(files)}".encode()).hexdigest()
    commits.append(Commit(sha, files))
    url = f"{handler.hub.address}/{id}/commit/{sha}"
    handler.answer_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def resolve(handler: Handler, *, body: bytes, id: str, revision: str, path: str) -> None:
    found = handler.commit(id, revision)
    if path not in found.files:
        raise Refused(404, "EntryNotFound", "Entry not found")
    data = found.files[path]
    etag = hashlib.sha256(data).hexdigest() if len(data) >= LARGE else blob(data)
    handler.answer(data, ETag=f'"{etag}"', X_Repo_Commit=found.sha, Accept_Ranges="bytes")


def blob(data: bytes) -> str:
    """Return git's own id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


ROUTES = (
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("POST", rf"/api/models/{_ID}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"/api/models/{_ID}/commit/(?P<revision>[^/]+)", commit),
    ("GET", rf"/api/{_KIND}/{_ID}/tree/(?P<revision>[^/]+)", tree),
    ("GET", rf"/api/{_KIND}/{_ID}/revision/(?P<revision>[^/]+)", info),
    ("GET", rf"/api/{_KIND}/{_ID}", info),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", put_large),
    (("GET", "HEAD"), rf"(?:/datasets)?/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve a new, empty hub on a free port of loopback until the block ends."""
    hub = Hub()
    bound = type("BoundHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
