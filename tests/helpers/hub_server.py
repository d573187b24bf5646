"""
A Hub of one's own, on the loopback: enough of its HTTP interface for the real `huggingface_hub` client.

    with HubServer(users={"hf_writer": "alice"}) as hub:
        environment = hub.environment(home, token="hf_writer")   # for a subprocess
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Files = dict[str, bytes]


@dataclass
class Commit:
    sha: str
    files: Files
    message: str
    changed: list[str]


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, files: Files, message: str, changed: list[str]) -> Commit:
        sha = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[sha] = Commit(sha, files, message, changed)
        self.refs[ref] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))


class Refusal(Exception):
    """An answer that is an error, in the Hub's form."""

    def __init__(self, status: int, code: str = "", message: str = "", **body: str) -> None:
        self.status, self.code, self.message, self.body = status, code, message, body


class HubServer:
    """
    Args:
        users: token to user name. Another token is refused; without one, what is public may be read.
    """

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range header
        self.faults: list[tuple[str, int | float]] = []  # repository/file, and a status or the share that is sent
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, token: str) -> dict[str, str]:
        """What a subprocess needs to take this for the Hub; all of it is read when huggingface_hub is imported."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repo_id: str, revision: str = "main") -> Files:
        commit = self.repositories[repo_id].at(revision)
        assert commit is not None, f"{repo_id} has no revision {revision}"
        return commit.files

    def history(self, repo_id: str) -> list[Commit]:
        return list(self.repositories[repo_id].commits.values())

    def put(self, repo_id: str, files: Files) -> None:
        """A repository with these files, without a client."""
        repository = self.repositories.setdefault(repo_id, Repository(private=False))
        repository.add("main", dict(files), "put", list(files))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    wbufsize = -1

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.user = self._user()
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)", path):
                self._resolve(match[1], match[2])
                return
            handlers = {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": self._validate,
                r"/api/models/([^/]+/[^/]+)": self._info,
                r"/api/models/([^/]+/[^/]+)/revision/(.+)": self._info,
                r"/api/models/([^/]+/[^/]+)/tree/(.+)": self._tree,
                r"/api/models/([^/]+/[^/]+)/branch/(.+)": self._branch,
                r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
                r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            }
            for pattern, handler in handlers.items():
                if match := re.fullmatch(pattern, path):
                    self._send(json.dumps(handler(*match.groups(), body=body, query=parse_qs(url.query))).encode())
                    return
            raise Refusal(404, message=f"no such address: {path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._send(json.dumps({"error": refusal.message, **refusal.body}).encode(), refusal.status, headers)

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks, and for what

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, message="Invalid username or password.")
        return self.hub.users.get(token)

    def _repository(self, repo_id: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.user is None):
            raise Refusal(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and self.user != repo_id.split("/")[0]:
            raise Refusal(403, message="You don't have the rights to write to this repository.")
        return repository

    def _at(self, repo_id: str, revision: str) -> Commit:
        commit = self._repository(repo_id).at(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # The API

    def _create(self, body: bytes, **_: Any) -> dict[str, Any]:
        values = json.loads(body)
        repo_id = f"{values.get('organization') or self.user}/{values['name']}"
        if self.user is None or self.user != repo_id.split("/")[0]:
            raise Refusal(401 if self.user is None else 403, message="You may not create this repository.")
        if repo_id in self.hub.repositories:
            raise Refusal(409, message="You already created this repository", url=f"{self.hub.endpoint}/{repo_id}")
        repository = self.hub.repositories[repo_id] = Repository(
            values.get("private") is True or values.get("visibility") == "private"
        )
        repository.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit", [".gitattributes"])
        return {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id}

    def _validate(self, body: bytes, **_: Any) -> dict[str, Any]:
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else None
        if not isinstance(metadata, dict):
            raise Refusal(400, message="no metadata")
        return {"errors": [], "warnings": []}

    def _info(self, repo_id: str, revision: str = "main", **_: Any) -> dict[str, Any]:
        commit = self._at(repo_id, revision)
        files = [{"rfilename": name} for name in commit.files]
        return {"id": repo_id, "sha": commit.sha, "private": self._repository(repo_id).private, "siblings": files}

    def _tree(self, repo_id: str, revision: str, **_: Any) -> list[dict[str, Any]]:
        files = self._at(repo_id, revision).files
        return [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]

    def _branch(self, repo_id: str, branch: str, **_: Any) -> dict[str, Any]:
        repository = self._repository(repo_id, write=True)
        if branch in repository.refs:
            raise Refusal(409, message="Reference already exists")
        repository.refs[branch] = repository.refs["main"]
        return {}

    def _preupload(self, repo_id: str, revision: str, body: bytes, **_: Any) -> dict[str, Any]:
        self._repository(repo_id, write=True)
        names = [file["path"] for file in json.loads(body)["files"]]
        # "regular" for everything: then no large-file storage takes part.
        return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}

    def _commit(self, repo_id: str, revision: str, body: bytes, query: dict[str, list[str]]) -> dict[str, Any]:
        repository = self._repository(repo_id, write=True)
        files, changed, message = dict(self._at(repo_id, revision).files), [], ""
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                changed.append(value["path"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
                changed.append(value["path"])
            else:
                raise Refusal(400, message=f"unknown entry {entry['key']}")
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
        ref = f"refs/pr/{number}" if query.get("create_pr") else revision
        commit = repository.add(ref, files, message, changed)
        url = f"{self.hub.endpoint}/{repo_id}"
        return {
            "commitUrl": f"{url}/commit/{commit.sha}",
            "commitOid": commit.sha,
            "pullRequestUrl": f"{url}/discussions/{number}" if query.get("create_pr") else None,
        }

    # Files

    def _resolve(self, repo_id: str, rest: str) -> None:
        repository = self._repository(repo_id)
        for cut in _prefixes(rest):  # a branch's name may hold slashes
            commit = repository.at(cut)
            if commit is not None:
                break
        else:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        name = rest[len(cut) + 1 :]
        if name not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        data = commit.files[name]
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start:
            headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
            data = data[int(start[1]) :]
        fault = self._fault(f"{repo_id}/{name}")
        if isinstance(fault, int):
            raise Refusal(fault, message="out of order")
        if fault is None:
            self._send(data, 206 if start else 200, headers)
            return
        self.send_response(206 if start else 200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[: int(len(data) * fault)])
        self.wfile.flush()
        self.close_connection = True  # in the middle of the body

    def _fault(self, name: str) -> int | float | None:
        if self.command == "GET" and self.hub.faults and name == self.hub.faults[0][0]:
            return self.hub.faults.pop(0)[1]
        return None


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
