"""A Hugging Face hub on the loopback address, with one model repository."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from loopback import Fault, Server, body

REPOSITORY, COMMIT = "team/towers", "1" * 40
API = f"api/models/{REPOSITORY}"


class Hub:
    """What the hub's client needs to upload and download one repository. `files` are the committed ones."""

    def __init__(self, server: Server) -> None:
        self.server, self.large, self.created = server, dict[str, bytes](), list[dict]()
        self.files, self.tree = dict[str, bytes](), list[dict]()
        server.faults = {
            "api/repos/create": reply(self.create),
            "api/validate-yaml": reply(lambda _: {"errors": [], "warnings": []}),
            f"{API}/preupload/main": reply(self.upload_modes),
            f"{REPOSITORY}.git/info/lfs/objects/batch": reply(self.upload_addresses),
            f"{API}/commit/main": reply(self.commit),
            f"{API}/revision/main": reply(lambda _: {"id": REPOSITORY, "sha": COMMIT}),
        }

    def create(self, sent: bytes) -> dict:
        self.created.append(json.loads(sent))
        return {"url": f"{self.server.url}/{REPOSITORY}"}

    def upload_modes(self, sent: bytes) -> dict:
        names = [file["path"] for file in json.loads(sent)["files"]]
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [
                {"path": name, "uploadMode": mode[name.endswith("safetensors")], "shouldIgnore": False}
                for name in names
            ]
        }

    def upload_addresses(self, sent: bytes) -> dict:
        objects = []
        for entry in json.loads(sent)["objects"]:
            path = f"upload/{entry['oid']}"
            self.server.faults[path] = reply(lambda data, oid=entry["oid"]: self.large.update({oid: data}) or {})
            objects.append(entry | {"actions": {"upload": {"href": f"{self.server.url}/{path}"}}})
        return {"transfer": "basic", "objects": objects}

    def commit(self, sent: bytes) -> dict:
        for line in map(json.loads, sent.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.publish(value["path"], base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                self.publish(value["path"], self.large[value["oid"]], value["oid"])
        return {"commitUrl": f"{self.server.url}/{REPOSITORY}/commit/{COMMIT}", "commitOid": COMMIT}

    def publish(self, name: str, content: bytes, digest: str = "") -> None:
        self.files[name] = content
        digest = digest or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{digest}"'}
        self.server.faults[f"{REPOSITORY}/resolve/{COMMIT}/{name}"] = body(content, **headers)
        self.tree.append({"type": "file", "path": name, "size": len(content), "oid": digest})
        self.server.faults[f"{API}/tree/{COMMIT}?recursive=true&expand=false"] = body(json.dumps(self.tree).encode())


def reply(function: Callable[[bytes], dict]) -> Fault:
    """Answers with the JSON that `function` makes of what was sent."""
    return lambda handler, _: handler.answer(200, json.dumps(function(handler.body())).encode())


def environment(home: Path, url: str) -> dict[str, str]:
    """The variables with which the hub's client uses the server; `home` is its cache.

    They must be set when the client's package is imported.
    """
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "secret"}
    return variables | {"HF_HUB_DISABLE_XET": "1"}
