"""A small Hub on the loopback interface: what huggingface_hub asks for when it pushes and pulls models.

Requests are recorded, repositories and tokens are plain attributes, and `fail` makes chosen requests go wrong.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png")
MAIN = "main"


@dataclass(kw_only=True)
class Commit:
    """Files of one commit, and which of them are stored as large files."""

    files: dict[str, bytes]
    large: set[str]
    title: str


@dataclass(kw_only=True)
class Repository:
    """Commits by id, and the commit that each branch stands at; pull requests are branches `refs/pr/N`."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit, *, branch: str) -> str:
        """Put a commit at the end of a branch; its id."""
        oid = hashlib.sha1(f"{len(self.commits)} {commit.title}".encode()).hexdigest()
        self.commits[oid] = commit
        self.branches[branch] = oid
        return oid

    def files(self, branch: str = MAIN) -> dict[str, bytes]:
        """Files at the end of a branch."""
        return self.commits[self.branches[branch]].files


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    token: str | None
    body: bytes


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with requests that match.

    Attributes:
        method: Method of the requests.
        pattern: Found in their path.
        status: Answer; `None` breaks the connection off.
        headers: Headers of the answer.
        skip: So many matching requests pass first.
        times: So many fail after that.
        is_done_first: Whether the request takes effect and only its answer is lost.
    """

    method: str
    pattern: str
    status: int | None
    headers: dict[str, str]
    skip: int
    times: int
    is_done_first: bool


class Answer(Exception):
    """Ends a request with this answer."""

    def __init__(self, status: int, content: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.content, self.headers = status, content, dict(headers or {})


class HubServer:
    """State of the Hub; `tokens` maps each valid token to the owners it may write to."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, tuple[str, ...]] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.url = ""
        self._faults: list[Fault] = []
        self._lock = threading.RLock()

    def fail(
        self,
        method: str,
        pattern: str,
        *,
        status: int | None,
        headers: dict[str, str] | None = None,
        skip: int = 0,
        times: int = 1,
        is_done_first: bool = False,
    ) -> None:
        """Make matching requests fail; see `Fault`."""
        self._faults.append(
            Fault(
                method=method,
                pattern=pattern,
                status=status,
                headers=headers or {},
                skip=skip,
                times=times,
                is_done_first=is_done_first,
            )
        )

    def recover(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def create(self, repo_id: str, *, private: bool, files: dict[str, bytes] | None = None) -> Repository:
        """Add a repository with one commit."""
        repository = self.repositories[repo_id] = Repository(private=private)
        repository.add(
            Commit(files={".gitattributes": b""} | (files or {}), large=set(), title=f"initial {repo_id}"), branch=MAIN
        )
        return repository

    def paths(self, method: str, pattern: str = "") -> list[str]:
        """Paths of the requests so far that match."""
        return [item.path for item in self.requests if item.method == method and re.search(pattern, item.path)]

    @property
    def received(self) -> bytes:
        """Every byte that came in: paths, bodies, and what is in the commits."""
        return b"\n".join(
            [item.path.encode() + b" " + item.body + b" " + _decoded_contents(item.body) for item in self.requests]
        )

    def answer(self, request: Request) -> tuple[Answer, bool]:
        """Answer to a request, and whether the connection breaks off instead."""
        with self._lock:
            self.requests.append(request)
            fault = self._fault_for(request)
            if fault is None or fault.is_done_first:
                try:
                    result = self._route(request)
                except Answer as answer:
                    result = answer
            if fault is not None:
                return Answer(fault.status or 0, {"error": "made to fail"}, fault.headers), fault.status is None
            return result, False

    def _fault_for(self, request: Request) -> Fault | None:
        for fault in self._faults:
            if fault.method == request.method and re.search(fault.pattern, request.path):
                if fault.skip:
                    fault.skip -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault
        return None

    def _route(self, request: Request) -> Answer:
        if request.token is not None and request.token not in self.tokens:
            return Answer(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"})
        parts = urlsplit(request.path)
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match is not None and request.method in method.split():
                groups = [unquote(group or "") for group in match.groups()]
                return getattr(self, action)(request, *groups)
        return Answer(404, {"error": "no such page"})

    def _whoami(self, request: Request) -> Answer:
        owners = self.tokens.get(request.token or "")
        return Answer(401) if owners is None else Answer(200, {"name": owners[0] if owners else "nobody"})

    def _create(self, request: Request) -> Answer:
        content = json.loads(request.body)
        repo_id = f"{content['organization']}/{content['name']}"
        self._require_write(request, repo_id)
        if repo_id in self.repositories:
            return Answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{repo_id}"})
        self.create(repo_id, private=content.get("visibility") == "private" or content.get("private") is True)
        return Answer(200, {"url": f"{self.url}/{repo_id}", "name": repo_id})

    def _validate_card(self, request: Request) -> Answer:
        content = json.loads(request.body)["content"]
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else {}
        if not isinstance(metadata.get("license", ""), str):
            return Answer(400, {"errors": [{"message": '"license" must be a string'}], "warnings": [], "error": "bad"})
        return Answer(200, {"errors": [], "warnings": []})

    def _info(self, request: Request, repo_id: str, revision: str = "") -> Answer:
        repository = self._visible(request, repo_id)
        oid = self._commit_id(repository, revision or MAIN)
        siblings = [{"rfilename": name} for name in repository.commits[oid].files]
        content = {"id": repo_id, "sha": oid, "private": repository.private, "siblings": siblings}
        return Answer(200, content | {"modelId": repo_id, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, request: Request, repo_id: str, revision: str, folder: str = "") -> Answer:
        repository = self._visible(request, repo_id)
        commit = repository.commits[self._commit_id(repository, revision)]
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        names = [name for name in commit.files if name.startswith(prefix)]
        if prefix and not names:
            return Answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        return Answer(200, [_tree_entry(name, commit) for name in names])

    def _preupload(self, request: Request, repo_id: str, revision: str) -> Answer:
        repository = self._visible(request, repo_id)
        is_for_pr = "create_pr" in parse_qs(urlsplit(request.path).query)
        if not is_for_pr:
            self._require_write(request, repo_id)
        commit = repository.commits[self._commit_id(repository, revision)]
        files = []
        for item in json.loads(request.body)["files"]:
            name, is_large = item["path"], item["path"].endswith(LFS_SUFFIXES)
            present = commit.files.get(name)
            oid = None if present is None else _sha256(present) if name in commit.large else _git_hash(present)
            mode = "lfs" if is_large else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer(200, {"files": files})

    def _batch(self, request: Request, repo_id: str) -> Answer:
        self._visible(request, repo_id)
        if request.token is None:
            return Answer(401)
        objects = []
        for item in json.loads(request.body)["objects"]:
            upload = {"href": f"{self.url}/storage/{item['oid']}", "header": {}}
            verify = {"href": f"{self.url}/storage-verify", "header": {}}
            is_here = item["oid"] in self.large_files
            objects.append(item if is_here else item | {"actions": {"upload": upload, "verify": verify}})
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _put(self, request: Request, oid: str) -> Answer:
        if _sha256(request.body) != oid:
            return Answer(400, {"error": "wrong content"})
        self.large_files[oid] = request.body
        return Answer(200)

    def _verify(self, request: Request) -> Answer:
        content = json.loads(request.body)
        is_whole = len(self.large_files.get(content["oid"], b"")) == content["size"]
        return Answer(200 if is_whole else 422, {})

    def _commit(self, request: Request, repo_id: str, revision: str) -> Answer:
        repository = self._visible(request, repo_id)
        is_for_pr = "create_pr" in parse_qs(urlsplit(request.path).query)
        if request.token is None:
            return Answer(401)
        if not is_for_pr:
            self._require_write(request, repo_id)
        parent = self._commit_id(repository, revision)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if header.get("parentCommit", parent) != parent:
            return Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files, large = dict(repository.commits[parent].files), set(repository.commits[parent].large)
        for line in lines[1:]:
            name = line["value"]["path"]
            large.discard(name)
            if line["key"] == "file":
                files[name] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                if line["value"]["oid"] not in self.large_files:
                    return Answer(400, {"error": f"{name} was not uploaded"})
                files[name] = self.large_files[line["value"]["oid"]]
                large.add(name)
            else:
                del files[name]
        number = sum(branch.startswith("refs/pr/") for branch in repository.branches) + 1
        branch = f"refs/pr/{number}" if is_for_pr else revision
        oid = repository.add(Commit(files=files, large=large, title=header["summary"]), branch=branch)
        page = f"{self.url}/{repo_id}"
        content = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "hookOutput": ""}
        return Answer(200, content | ({"pullRequestUrl": f"{page}/discussions/{number}"} if is_for_pr else {}))

    def _resolve(self, request: Request, repo_id: str, revision: str, name: str) -> Answer:
        repository = self._visible(request, repo_id)
        oid = self._commit_id(repository, revision)
        commit = repository.commits[oid]
        if name not in commit.files:
            return Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        content = commit.files[name]
        headers = {"ETag": f'"{_git_hash(content)}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if name in commit.large:
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        return Answer(200, content, headers)

    def _visible(self, request: Request, repo_id: str) -> Repository:
        repository = self.repositories.get(repo_id)
        owners = self.tokens.get(request.token or "", ())
        if repository is not None and (not repository.private or repo_id.partition("/")[0] in owners):
            return repository
        # Strangers are not told whether a private repository exists.
        headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        raise Answer(401 if request.token is None else 404, {"error": "Repository not found"}, headers)

    def _commit_id(self, repository: Repository, revision: str) -> str:
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            raise Answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return oid

    def _require_write(self, request: Request, repo_id: str) -> None:
        owner = repo_id.partition("/")[0]
        if request.token is None:
            raise Answer(401, {"error": "Unauthorized"})
        if owner not in self.tokens[request.token]:
            raise Answer(403, {"error": f"You don't have the rights to write to {owner}"})


_ID = r"([^/]+/[^/]+)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/repos/create", "_create"),
    ("POST", r"/api/validate-yaml", "_validate_card"),
    ("GET", rf"/api/models/{_ID}", "_info"),
    ("GET", rf"/api/models/{_ID}/revision/([^/]+)", "_info"),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)(/.*)?", "_tree"),
    ("POST", rf"/api/models/{_ID}/preupload/([^/]+)", "_preupload"),
    ("POST", rf"/api/models/{_ID}/commit/([^/]+)", "_commit"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "_batch"),
    ("PUT", r"/storage/([0-9a-f]{64})", "_put"),
    ("POST", r"/storage-verify", "_verify"),
    ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", "_resolve"),
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave together; otherwise the client waits 40 ms for each answer.
    wbufsize = -1
    disable_nagle_algorithm = True
    hub: HubServer

    def do_any(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        request = Request(method=self.command, path=self.path, token=token, body=self._read_body())
        answer, is_broken_off = self.hub.answer(request)
        if is_broken_off:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        is_json = not isinstance(answer.content, bytes)
        content = json.dumps(answer.content).encode() if is_json else answer.content
        status, headers = (
            answer.status,
            {"Content-Type": "application/json" if is_json else "application/octet-stream"},
        )
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is not None and status == 200:
            first, last = int(span[1]), int(span[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self.send_response(status)
        for name, value in (headers | answer.headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """A Hub that answers at its `url` while the block runs."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree_entry(name: str, commit: Commit) -> dict[str, Any]:
    content = commit.files[name]
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
    if name in commit.large:
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
    return entry


def _decoded_contents(body: bytes) -> bytes:
    return b"".join(
        base64.b64decode(found) for found in re.findall(rb'"(?:content|sample)": ?"([A-Za-z0-9+/]+=*)"', body)
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
