"""Models on the Hugging Face hub: what `landmarks push` uploads, and what `--model hf://OWNER/NAME` fetches.

Only the files of a model folder in `FILES` travel: no pictures, no code. A downloaded file must have the hash that the
hub publishes for it.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

from landmarks import release
from landmarks.stage import UserError

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, snapshot_download

SCHEME = "hf://"
NAME = r"[\w-]+/\w[\w.-]*"
REVISION = r"\w[\w./-]*"
FILES = ("README.md", "release.json", "classes.csv", "design.json", "model.safetensors", "backbone.safetensors")


def card(folder: Path, repository: str) -> str:
    """The folder's model card with the header that the hub reads: licence, tags and test metrics.

    Replaces the header of a card that came from the hub. Raises `UserError` if the card has no title.
    """
    facts = release.read(folder)
    source, test = facts["params"]["data"]["source"], facts["results"]["test"]
    data = {"dataset_type": source, "dataset_name": f"data.source: {source}", "dataset_split": "test"}
    header = ModelCardData(
        model_name=facts["name"],
        pipeline_tag="image-classification",
        license="other",  # trunk and head have different ones
        license_name="see-the-section-licences",
        license_link=f"https://huggingface.co/{repository}#licences",
        tags=["landmark-recognition", *(["attention-branch-network"] if facts["params"]["abn"] else [])],
        eval_results=[
            EvalResult("image-classification", metric_type=key, metric_name=name, metric_value=test[key], **data)
            for key, name in release.METRICS.items()
        ],
    )
    written = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    parts = re.fullmatch(r"(?:---\n.*?\n---\n+)?(# [^\n]*\n)(?:\nUse it: [^\n]*\n)?(.*)", written, re.DOTALL)
    if not parts:
        raise UserError(f"{folder / 'README.md'}: must begin with a title, such as `# {facts['name']}`")
    usage = f"Use it: `landmarks predict photo.jpg --model {SCHEME}{repository}`"
    return f"---\n{header.to_yaml()}\n---\n\n{parts[1]}\n{usage}\n{parts[2]}"


def failure(what: str, error: Exception) -> UserError:
    """The error of the hub's client, in one line."""
    return UserError(f"{what} ({error!s:.200}); check the name, the login (`hf auth login`) and the connection")


def push(folder: Path, repository: str) -> str:
    """Uploads the model `folder` to `repository` (OWNER/NAME), which is created as private if it is new. Returns its
    address with the commit.

    Raises `UserError` if the name is wrong, a file is missing, or the hub refuses the upload.
    """
    if not re.fullmatch(NAME, repository, re.ASCII):
        raise UserError(f"{repository}: not the name of a repository; it must be OWNER/NAME, such as team/towers")
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; `make reproduce` writes models to models/released/")
    content: dict[str, str | bytes] = {name: str(folder / name) for name in FILES}
    content["README.md"] = card(folder, repository).encode()
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        additions = [CommitOperationAdd(name, file) for name, file in content.items()]
        commit = api.create_commit(repository, additions, commit_message=f"Model {folder.resolve().name}")
    except Exception as error:  # any error of the hub's client and its transports
        raise failure(f"{repository} could not be uploaded", error) from None
    return f"{SCHEME}{repository}@{commit.oid}"


def digest(file: Path, published: str) -> str:
    """The hash of a file, of the type of `published`: SHA-256 of large files, git's blob SHA-1 of small ones."""
    data = file.read_bytes()
    if len(published) == 64:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@cache
def fetch(address: str) -> Path:
    """The folder of the model at hf://OWNER/NAME or hf://OWNER/NAME@REVISION, in the hub's cache.

    Raises `UserError` if the address is wrong, or the model cannot be fetched, is incomplete or is damaged.
    """
    from landmarks.weight_files import published_hash  # imported here because `push` does not need PyTorch

    match = re.fullmatch(f"{SCHEME}({NAME})(?:@({REVISION}))?", address, re.ASCII)
    if not match or ".." in address:  # the client uses both parts as paths in its cache
        raise UserError(f"--model: {address}: must be {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION")
    try:
        folder = Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(FILES)))
    except Exception as error:  # any error of the hub's client and its transports
        raise failure(f"--model: {address} could not be fetched", error) from None
    for file in (folder / name for name in FILES):
        if not file.exists():
            raise UserError(f"--model: {address} has no {file.name}; `landmarks push` uploads models")
        published = published_hash(file, f"--model: {address}")
        if digest(file, published) != published:
            raise UserError(f"--model: {file.resolve()} does not have the published hash {published}; remove it")
    return folder
