"""A Hub on this machine, for the real clients: HTTP of huggingface.co as far as pushes and pulls use it.

    with LoopbackHub() as hub:
        subprocess.run(..., env=os.environ | hub.environment(home))

What it holds can be looked at (`hub.files`), spoilt (`hub.fault`, `hub.cut`, `hub.spoil`) and counted (`hub.requests`).
Large files live under another host name than the Hub itself, as they do there.
"""

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".parquet", ".npy", ".faiss", ".bin")
KINDS = ("model", "dataset", "space")


@dataclasses.dataclass
class Repo:
    """One repository; `commits` are (id, {path: content}), the last one is main."""

    private: bool
    sdk: str | None = None
    commits: list[tuple[str, dict[str, bytes]]] = dataclasses.field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        seed = repr((len(self.commits), sorted((name, _sha256(data)) for name, data in files.items())))
        self.commits.append((hashlib.sha1(seed.encode()).hexdigest(), files))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class LoopbackHub:
    """Tokens: `writer` may do all in the namespace croplem, `reader` may read it, `stranger` sees what is public."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self._faults: list[list] = []
        self._cuts: dict[str, int] = {}
        self._spoilt: set[str] = set()
        self.before: Callable[[str], object] | None = None
        self.closed = False

    def __enter__(self) -> "LoopbackHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more, on connections that are open neither."""
        if not self.closed:
            self.closed = True
            self._server.shutdown()
            self._server.server_close()

    def environment(self, home: Path, token: str | None = "writer") -> dict[str, str]:
        """Variables of a process that takes this for the Hub, with a cache of its own."""
        login = {} if token is None else {"HF_TOKEN": token}
        return login | {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def create(self, kind: str, name: str, files: dict[str, bytes], *, private: bool = True) -> str:
        """Put files into a repository, made where there is none -> commit."""
        repo = self.repos.setdefault((kind, name), Repo(private))
        return repo.commit(files)

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """Content of main, but for what the Hub itself puts there."""
        return {path: data for path, data in self.repos[kind, name].commits[-1][1].items() if path != ".gitattributes"}

    def fault(self, method: str, pattern: str, status: int, times: int = 1) -> None:
        """Answer the next `times` requests whose path fits with `status`."""
        self._faults.append([method, re.compile(pattern), status, times])

    def cut(self, name: str, after: int) -> None:
        """Break the connection once after so many bytes of a file."""
        self._cuts[name] = after

    def spoil(self, name: str) -> None:
        """From now on send a file with one byte changed."""
        self._spoilt.add(name)

    def take_fault(self, method: str, path: str) -> int | None:
        for fault in self._faults:
            if fault[3] and fault[0] == method and fault[1].search(path):
                fault[3] -= 1
                return fault[2]
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS)


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/(\w+)s/([\w.-]+/[\w.-]+)(?:/revision/([^/]+))?", "about"),
        ("GET", r"/api/(\w+)s/([\w.-]+/[\w.-]+)/tree/([^/]+)(?:/(.*))?", "tree"),
        ("POST", r"/api/(\w+)s/([\w.-]+/[\w.-]+)/paths-info/([^/]+)", "paths_info"),
        ("POST", r"/api/(\w+)s/([\w.-]+/[\w.-]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(\w+)s/([\w.-]+/[\w.-]+)/commit/([^/]+)", "commit"),
        ("POST", r"/(?:(dataset|space)s/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_put"),
        ("POST", r"/lfs/(\w+)/verify", "lfs_verify"),
        ("GET", r"/lfs/(\w+)/(.*)", "lfs_get"),
        ("GET", r"/(?:(dataset|space)s/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.*)", "resolve"),
    )

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.closed:
            self.close_connection = True
            return
        if self.hub.before is not None:
            self.hub.before(path)
        status = self.hub.take_fault(self.command, path)
        if status is not None:
            return self.refuse(status, "asked for by the test")
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                return getattr(self, name)(*match.groups())
        return self.refuse(404, f"no route {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    @property
    def user(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def repo(self, kind: str | None, name: str, *, write: bool = False) -> Repo | None:
        """The repository, if this user may see it and, where asked for, write; else the refusal is sent."""
        found = self.hub.repos.get((kind or "model", name))
        hidden = found is None or (found.private and self.user not in ("writer", "reader"))
        if hidden and self.user is None:
            # To who is not logged in, the Hub does not tell what is missing from what is private.
            self.refuse(401, "Invalid username or password.")
        elif hidden:
            self.refuse(404, "Repository not found", code="RepoNotFound")
        elif write and self.user != "writer":
            self.refuse(403, f"Forbidden: pass a token that may write to {name}.")
        else:
            return found
        return None

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = repo.at(revision)
        if found is None:
            self.refuse(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return found

    # Routes

    def whoami(self) -> None:
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        self.answer({"type": "user", "name": "croplem" if self.user == "writer" else self.user, "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        space = asked.get("organization") or "croplem"
        key = asked.get("type") or "model", f"{space}/{asked['name']}"
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        if space != "croplem" or self.user != "writer":
            return self.refuse(403, f'You don\'t have the rights to create a {key[0]} under the namespace "{space}"')
        url = f"http://127.0.0.1:{self.hub.port}/{'' if key[0] == 'model' else key[0] + 's/'}{key[1]}"
        if key in self.hub.repos:
            return self.answer({"error": "You already created this repo", "url": url}, status=409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[key] = repo = Repo(bool(private), asked.get("sdk"))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer({"url": url, "name": key[1], "id": "1"})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        if not content.startswith("---\n"):
            return self.answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        self.answer({"errors": [], "warnings": []})

    def about(self, kind: str, name: str, revision: str | None) -> None:
        if (repo := self.repo(kind, name)) and (found := self.files(repo, revision or "main")):
            siblings = [{"rfilename": path} for path in found[1]]
            self.answer({"id": name, "sha": found[0], "private": repo.private, "siblings": siblings, "tags": [],
                         "downloads": 0, "likes": 0, "sdk": repo.sdk, "gated": False})  # fmt: skip

    def tree(self, kind: str, name: str, revision: str, below: str | None) -> None:
        if (repo := self.repo(kind, name)) and (found := self.files(repo, revision)):
            prefix = f"{below}/" if below else ""
            entries = {}
            for path, data in sorted(found[1].items()):
                if not path.startswith(prefix):
                    continue
                parts = path[len(prefix) :].split("/")
                for depth in range(1, len(parts)):
                    folder = prefix + "/".join(parts[:depth])
                    entries[folder] = {"type": "directory", "path": folder, "oid": _blob(folder.encode()), "size": 0}
                entries[path] = self.entry(path, data)
            if "recursive" not in self.query or self.query["recursive"][0].lower() in ("false", "0"):
                entries = {path: entry for path, entry in entries.items() if "/" not in path[len(prefix) :]}
            if prefix and not entries:
                return self.refuse(404, f"{below} does not exist", code="EntryNotFound")
            self.answer(list(entries.values()))

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.repo(kind, name)) and (found := self.files(repo, revision)):
            try:
                paths = json.loads(self.body)["paths"]
            except ValueError:
                paths = parse_qs(self.body.decode()).get("paths", [])
            out = []
            for path in paths:
                if path in found[1]:
                    out.append(self.entry(path, found[1][path]))
                elif any(other.startswith(f"{path}/") for other in found[1]):
                    out.append({"type": "directory", "path": path, "oid": _blob(path.encode()), "size": 0})
            self.answer(out)

    def entry(self, path: str, data: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
        if _is_lfs(path):
            entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
        return entry

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if repo := self.repo(kind, name, write=True):
            there = repo.at("main")[1]
            files = []
            for file in json.loads(self.body)["files"]:
                path, lfs = file["path"], _is_lfs(file["path"])
                old = there.get(path)
                oid = None if old is None else _sha256(old) if lfs else _blob(old)
                mode = "lfs" if lfs else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.answer({"files": files})

    def lfs_batch(self, kind: str | None, name: str) -> None:
        if self.repo(kind, name, write=True):
            base = f"http://localhost:{self.hub.port}/lfs"
            objects = []
            for item in json.loads(self.body)["objects"]:
                oid = item["oid"]
                actions = {"upload": {"href": f"{base}/{oid}"}, "verify": {"href": f"{base}/{oid}/verify"}}
                objects.append(item if oid in self.hub.uploads else item | {"actions": actions})
            self.answer({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def lfs_put(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            return self.refuse(400, "content does not fit its SHA-256")
        self.hub.uploads[oid] = self.body
        self.answer({})

    def lfs_verify(self, oid: str) -> None:
        asked = json.loads(self.body)
        fits = len(self.hub.uploads.get(asked["oid"], b"")) == asked["size"]
        self.answer({}) if fits and oid == asked["oid"] else self.refuse(404, "no such object")

    def commit(self, kind: str, name: str, revision: str) -> None:
        if not (repo := self.repo(kind, name, write=True)):
            return
        head, files = repo.at("main")
        files = dict(files)
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, head):
                return self.refuse(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
        oid = repo.commit(files)
        url = f"http://127.0.0.1:{self.hub.port}/{'' if kind == 'model' else kind + 's/'}{name}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        if (repo := self.repo(kind, name)) and (found := self.files(repo, revision)):
            commit, files = found
            if path not in files:
                return self.refuse(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit})
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(files[path])}"'}
            if not _is_lfs(path):
                return self.send(files[path], path, headers)
            oid = _sha256(files[path])
            self.hub.uploads[oid] = files[path]
            about = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(files[path]))}
            about["Location"] = f"http://localhost:{self.hub.port}/lfs/{oid}/{path}"
            self.answer(b"", status=302, headers=headers | about)

    def lfs_get(self, oid: str, path: str) -> None:
        data = self.hub.uploads.get(oid)
        self.refuse(404, "no such object") if data is None else self.send(data, path, {"ETag": f'"{oid}"'})

    # Answers

    def send(self, data: bytes, path: str, headers: dict[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        name = path.rpartition("/")[2]
        if name in self.hub._spoilt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, total = 200, len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, stop = int(asked[1]), min(int(asked[2] or total - 1), total - 1)
            if start >= total:
                return self.answer(b"", status=416, headers={"Content-Range": f"bytes */{total}"})
            status, data = 206, data[start : stop + 1]
            headers = headers | {"Content-Range": f"bytes {start}-{stop}/{total}"}
        cut = self.hub._cuts.pop(name, None) if self.command == "GET" else None
        headers = headers | {"Accept-Ranges": "bytes"}
        self.answer(data, status=status, headers=headers, kind="application/octet-stream", cut=cut)

    def refuse(self, status: int, message: str, code: str | None = None, headers: dict | None = None) -> None:
        extra = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer({"error": message}, status=status, headers=extra | (headers or {}))

    def answer(
        self, content, *, status: int = 200, headers: dict | None = None, kind: str = "application/json",
        cut: int | None = None,
    ) -> None:  # fmt: skip
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        self.close_connection = cut is not None

    def log_message(self, *args) -> None:
        pass
