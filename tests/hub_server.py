"""A small Hugging Face hub on the loopback, for the real huggingface_hub: what it asks in downloads and uploads."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

MODEL = r"/api/models/(?P<name>[^/]+(?:/(?!revision/|tree/)[^/]+)?)"


@dataclass
class Repository:
    """Files by commit; ``refs`` are branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False  # its files are for those with the right token
    private: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Put files to those of a branch; the commit."""
        files = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        text = repr(sorted((name, hashlib.sha1(content).hexdigest()) for name, content in files.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit], self.refs[ref] = files, commit
        return commit


class HubServer(ThreadingHTTPServer):
    """Repositories by name, names that moved, the token that may do all, and a line for each request."""

    daemon_threads = True
    token = "hf_right"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}  # of large files, by SHA-256
        self.requests: list[str] = []
        self.down = False
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes], ref: str = "main", **about) -> str:
        return self.repositories.setdefault(name, Repository(**about)).commit(files, ref)

    def fetched(self) -> list[str]:
        """What was downloaded since the last time, large files as /lfs/DIGEST."""
        paths = [line.removeprefix("GET ") for line in self.requests if re.match(r"GET (?!/api/)", line)]
        self.requests.clear()
        return [path if path.startswith("/lfs/") else path.rpartition("/")[2] for path in paths]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        try:
            if self.server.down:
                raise _Refused(503)
            for (method, pattern), handle in ROUTES.items():
                if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                    return handle(self, **match.groupdict())
            raise _Refused(404)
        except _Refused as refused:
            self.send(b"", refused.status, refused.headers)

    def send(self, content, status=200, headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def allowed(self) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {self.server.token}"):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return given is not None

    def repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.allowed):
            raise _Refused(404 if self.allowed else 401, "RepoNotFound", "Repository not found")
        return repository

    def is_moved(self, name: str) -> bool:
        """The hub's names without an owner are redirected to those with one."""
        if name in self.server.moved:
            location = self.path.replace(name, self.server.moved[name], 1)
            self.send(b"", 307, {"Location": location})
        return name in self.server.moved

    def commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def info(self, name, revision="main"):
        if not self.is_moved(name):
            repository = self.repository(name)
            commit = self.commit_of(repository, revision)
            files = [{"rfilename": file} for file in repository.commits[commit]]
            self.send(
                {
                    "_id": "1",
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "siblings": files,
                    "private": repository.private,
                }
            )

    def tree(self, name, revision):
        """What newer versions ask in the place of ``siblings``."""
        if not self.is_moved(name):
            repository = self.repository(name)
            files = repository.commits[self.commit_of(repository, revision)]
            oids = {file: hashlib.sha1(content).hexdigest() for file, content in files.items()}
            self.send([{"type": "file", "path": file, "size": len(files[file]), "oid": oids[file]} for file in files])

    def resolve(self, name, revision, file):
        if self.is_moved(name):
            return
        repository = self.repository(name)
        if repository.gated and not self.allowed:
            raise _Refused(401, "GatedRepo", f"Access to model {name} is restricted.")
        commit = self.commit_of(repository, revision)
        about = {"X-Repo-Commit": commit}
        content = repository.commits[commit].get(file)
        if content is None:
            self.send(b"", 404, {"X-Error-Code": "EntryNotFound", **about})
            return
        digest = hashlib.sha256(content).hexdigest()
        if file.endswith((".safetensors", ".bin")):  # large files are somewhere else
            self.server.blobs[digest] = content
            about |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{digest}"',
                "Location": f"http://localhost:{self.server.server_port}/lfs/{digest}",
            }
            self.send(b"", 302, about)
        else:
            self.send(content, headers={**about, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def large(self, digest):
        if self.command == "PUT":
            self.server.blobs[digest] = self.body
            self.send(b"")
        else:
            self.send(self.server.blobs[digest])

    def create(self):
        given = json.loads(self.body)
        name = f"{given['organization']}/{given['name']}" if given["organization"] else f"me/{given['name']}"
        if not self.allowed:
            raise _Refused(401, message="Invalid username or password.")
        if given["organization"] == "others":
            raise _Refused(403, message="You don't have the rights to create a model under this namespace")
        known = name in self.server.repositories
        if not known:
            self.server.add(
                name,
                {".gitattributes": b""},
                private=bool(given.get("private") or given.get("visibility") == "private"),
            )
        self.send({"url": f"{self.server.url}/{name}"}, 409 if known else 200)

    def validate(self):
        content = json.loads(self.body)["content"]
        self.send({"errors": [], "warnings": []} if content.startswith("---\n") else {"warnings": [{"message": "no"}]})

    def preupload(self, name, revision):
        self.repository(name)
        modes = [
            {"path": file["path"], "shouldIgnore": False, "uploadMode": "lfs" if large else "regular"}
            for file in json.loads(self.body)["files"]
            for large in [file["path"].endswith((".safetensors", ".bin"))]
        ]
        self.send({"files": modes})

    def batch(self, name):
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.send({"transfer": "basic", "objects": objects})

    def commit(self, name, revision):
        if not self.allowed:
            raise _Refused(401)
        files = {}
        for line in self.body.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            elif part["key"] == "lfsFile":
                files[part["value"]["path"]] = self.server.blobs[part["value"]["oid"]]
        commit = self.repository(name).commit(files, revision)
        self.send({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})


ROUTES = {
    ("POST", "/api/repos/create"): _Handler.create,
    ("POST", "/api/validate-yaml"): _Handler.validate,
    ("GET", MODEL): _Handler.info,
    ("GET", MODEL + "/revision/(?P<revision>.+)"): _Handler.info,
    ("GET", MODEL + "/tree/(?P<revision>.+)"): _Handler.tree,
    ("POST", MODEL + "/preupload/(?P<revision>.+)"): _Handler.preupload,
    ("POST", MODEL + "/commit/(?P<revision>.+)"): _Handler.commit,
    ("POST", r"/(?P<name>.+)\.git/info/lfs/objects/batch"): _Handler.batch,
    ("GET", "/lfs/(?P<digest>.+)"): _Handler.large,
    ("PUT", "/lfs/(?P<digest>.+)"): _Handler.large,
    ("GET", r"/(?P<name>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"): _Handler.resolve,
}
