"""A stand-in of the hub on this machine: enough of its HTTP interface for the real client to make, fill and read
repositories of models."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "standin" * 4


class Hub:
    """Repositories by name; each a list of commits, the newest last, of files by name."""

    def __init__(self):
        self.repositories, self.private, self.tags, self.large = {}, {}, {}, {}
        self.asked = []

    def add(self, name, folder, private=False):
        """A repository with one commit that holds a folder's files; the commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*")}
        self.repositories.setdefault(name, [])
        self.private[name] = private
        return self.commit(name, files)

    def commit(self, name, files):
        commits = self.repositories[name]
        held = {**(commits[-1][1] if commits else {}), **files}
        digest = hashlib.sha1()
        for file, content in sorted(held.items()):
            digest.update(file.encode() + content)
        commits.append((digest.hexdigest(), held))
        return digest.hexdigest()

    def files(self, name, revision="main"):
        """The commit and its files; None where there is no such revision."""
        revision = self.tags.get((name, revision), revision)
        commits = self.repositories[name]
        found = commits[-1:] if revision == "main" else [each for each in commits if each[0] == revision]
        return found[0] if found else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_PUT(self):
        self._serve()

    def _serve(self):
        path = unquote(urlsplit(self.path).path)
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path, self.headers.get("Authorization")))
        for pattern, answer in self._routes:
            if match := re.fullmatch(pattern, path):
                return answer(self, *match.groups())
        return self._say(404, {"error": f"no route {self.command} {path}"})

    def _may_write(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _hidden(self, name):
        return name not in self.hub.repositories or (self.hub.private[name] and not self._may_write())

    def _no_such(self, code):
        self._say(404, {"error": code}, {"X-Error-Code": code})

    def _create(self):
        if not self._may_write():
            return self._say(401, {"error": "Invalid credentials"})
        asked = json.loads(self._body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repositories:
            return self._say(409, {"error": "exists"})
        self.hub.repositories[name] = [("0" * 40, {})]
        self.hub.private[name] = asked.get("private", asked.get("visibility") == "private")
        return self._say(200, {"url": f"/{name}", "name": name})

    def _preupload(self, name, _revision):
        if not self._may_write():
            return self._say(403, {"error": "You are not allowed to write"})
        files = [
            {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
            for each in json.loads(self._body)["files"]
        ]
        return self._say(200, {"files": [{**each, "shouldIgnore": False} for each in files]})

    def _batch(self, _name):
        host = self.headers["Host"]
        objects = [
            {**each, "actions": {"upload": {"href": f"http://{host}/lfs/{each['oid']}", "header": {}}}}
            for each in json.loads(self._body)["objects"]
        ]
        return self._say(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid):
        assert hashlib.sha256(self._body).hexdigest() == oid
        self.hub.large[oid] = self._body
        self._say(200, {})

    def _commit(self, name, _revision):
        if not self._may_write():
            return self._say(403, {"error": "You are not allowed to write"})
        files = {}
        for line in map(json.loads, self._body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.large[line["value"]["oid"]]
        commit = self.hub.commit(name, files)
        return self._say(200, {"commitUrl": f"/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _information(self, name, revision="main"):
        if self._hidden(name):
            return self._no_such("RepoNotFound")
        found = self.hub.files(name, revision)
        if found is None:
            return self._no_such("RevisionNotFound")
        siblings = [{"rfilename": file} for file in found[1]]
        told = {"_id": name, "id": name, "modelId": name, "private": self.hub.private[name]}
        return self._say(200, {**told, "sha": found[0], "siblings": siblings, "tags": []})

    def _tree(self, name, revision):
        _, held = self.hub.files(name, revision)
        return self._say(
            200,
            [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in held.items()
            ],
        )

    def _resolve(self, name, revision, file):
        if self._hidden(name):
            return self._no_such("RepoNotFound")
        found = self.hub.files(name, revision)
        if found is None:
            return self._no_such("RevisionNotFound")
        commit, held = found
        if file not in held:
            return self._say(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = f'"{hashlib.sha1(held[file]).hexdigest()}"'
        return self._send(200, held[file], {"X-Repo-Commit": commit, "ETag": etag})

    def _say(self, status, content, headers=()):
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **dict(headers)})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    _NAME = r"([\w.-]+/[\w.-]+)"
    _routes = (
        (r"/api/repos/create", _create),
        (r"/api/validate-yaml", lambda self: self._say(200, {"errors": [], "warnings": []})),
        (rf"/api/models/{_NAME}/preupload/([^/]+)", _preupload),
        (rf"/api/models/{_NAME}/commit/([^/]+)", _commit),
        (rf"/api/models/{_NAME}/tree/([^/]+)", _tree),
        (rf"/api/models/{_NAME}/revision/([^/]+)", _information),
        (rf"/api/models/{_NAME}", _information),
        (rf"/{_NAME}\.git/info/lfs/objects/batch", _batch),
        (r"/lfs/([0-9a-f]+)", _store),
        (rf"/{_NAME}/resolve/([^/]+)/(.+)", _resolve),
    )


@contextmanager
def serving():
    """The stand-in, and the environment in which a process takes it for the hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield hub, {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
