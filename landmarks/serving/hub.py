"""Models on the Hugging Face hub: what `landmarks push` uploads, and what `--model hf://OWNER/NAME` fetches.

Only the files of a model folder in `FILES` travel, never pictures. A downloaded file must have the hash that the hub
publishes for it, and none of them is code.
"""

import hashlib
from functools import cache
from pathlib import Path

from landmarks import release
from landmarks.stage import UserError

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, snapshot_download

SCHEME = "hf://"
FILES = ("README.md", "release.json", "classes.csv", "design.json", "model.safetensors", "backbone.safetensors")
METRICS = {"accuracy": "accuracy", "top5": "top-5 accuracy", "macro_recall": "mean recall of the classes"}


def card(folder: Path, repository: str) -> str:
    """The folder's model card with the header that the hub reads: licence, tags and test metrics."""
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
            for key, name in METRICS.items()
        ],
    )
    usage = f"Use it: `landmarks predict photo.jpg --model {SCHEME}{repository}`"
    title, text = (folder / "README.md").read_text(encoding="utf-8").split("\n", 1)
    return f"---\n{header.to_yaml()}\n---\n\n{title}\n\n{usage}\n{text}"


def push(folder: Path, repository: str) -> str:
    """Uploads the model `folder` to `repository` (OWNER/NAME), made as a private one if it is new; returns its address.

    Raises `UserError` if a file is missing or the hub refuses it.
    """
    content: dict[str, str | bytes] = {name: str(folder / name) for name in FILES}
    content["README.md"] = card(folder, repository).encode()
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        additions = [CommitOperationAdd(name, file) for name, file in content.items()]
        commit = api.create_commit(repository, additions, commit_message=f"Model {folder.resolve().name}")
    except Exception as error:  # any error of the hub's client and its transports
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{repository} could not be uploaded ({reason}); try `hf auth login`, and again") from None
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

    Raises `UserError` if it cannot be fetched, or a file lacks or does not have the hash that the hub publishes.
    """
    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # any error of the hub's client and its transports
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model: {address} could not be fetched ({reason}); try again online") from None
    for file in (folder / name for name in FILES):
        if not file.is_symlink():
            raise UserError(f"--model: {address} has no {file.name}; `landmarks push` uploads models")
        published = file.readlink().name  # the client names the files of its cache by their hash
        if digest(file, published) != published:
            raise UserError(f"--model: {file.resolve()} does not have the published hash {published}; remove it")
    return folder
