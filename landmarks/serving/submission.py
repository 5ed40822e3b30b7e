"""Answers in the format of the challenge (Google Landmark Recognition, Kaggle 2018 to 2021).

    id,landmarks
    000088da12d664db,8815 0.030000
    0001623c6d808702,

One row per picture, sorted by id: the landmark and its confidence, or nothing if none is recognised.
"""

import csv
import glob
import hashlib
import io
import json
import os
import re
from itertools import islice, pairwise
from pathlib import Path

from landmarks import stage
from landmarks.images import ENDINGS, Unfit
from landmarks.scan import printable
from landmarks.serving import recognizer
from landmarks.serving.recognizer import Recognizer
from landmarks.stage import UserError
from landmarks.stage.errors import reason

HEADER = ["id", "landmarks"]


def photos(index: Path, folder: Path | None) -> dict[str, Path | None]:
    """The picture of each id, None if it is missing, sorted by id.

    `index` is a folder of pictures, whose ids are their names without endings, or a CSV with a column `id`. The
    pictures of a CSV are in `folder` (default: beside it), at any depth, as in the layouts of v1 and v2. Raises
    `UserError` that names the missing file, or an id that appears twice.
    """
    if index.is_dir():
        if folder:
            raise UserError(f"--pictures: is only for a CSV, and {index} is a folder; leave it out")
        found = by_stem(index)
        if not found:
            raise UserError(f"{index}: no pictures found; their names need an ending such as .jpg")
        return dict(sorted(found.items()))
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            ids = [row["id"] for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"{index}: {reason(error)}; give a folder or a CSV") from None
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{index}: not a CSV with a column id; give a folder or a CSV") from None
    if not ids:
        raise UserError(f"{index}: no rows; it needs one row per picture")
    if not all(ids):
        raise UserError(f"{index}: a row has no id; add it, or remove the row")
    folder = folder or index.parent
    if not folder.is_dir():
        raise UserError(f"--pictures: {folder} is not a folder; give the folder of the pictures")
    found = by_stem(folder, set(ids))
    ids = sorted(ids)
    for one, two in pairwise(ids):
        if one == two:
            raise UserError(f"{index}: id {one} appears more than once; remove a row")
    if not found:
        raise UserError(f"--pictures: {folder} has no picture whose name is an id of {index}; name another folder")
    return {name: found.get(name) for name in ids}


def by_stem(folder: Path, wanted: set[str] | None = None) -> dict[str, Path]:
    """The pictures below `folder` by their names without endings: all, or only those `wanted`.

    Raises `UserError` for two of the same name, and for a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    for path in recognizer.pictures(folder):
        if path.suffix.lower() not in ENDINGS:
            raise UserError(f"{path}: cannot be read; give yourself access, or remove it")
        name = printable(path.stem)
        if wanted is None or name in wanted:
            if name in found:
                raise UserError(f"{folder}: {found[name]} and {path} have the same id; rename one")
            found[name] = path
    return found


def write(model: Recognizer, photos: dict[str, Path | None], out: Path, force: bool = False) -> str:
    """Writes the CSV for `photos`, which are sorted by id, and returns a summary.

    The CSV appears when it is complete. Until then its rows are in a file beside it, from which a later run of the same
    model with the same photos continues. Raises `UserError` if a `landmark_id` does not fit the format, or if `out`
    exists and there is no `force`, and `OSError`.
    """
    unfit = next((name for name in model.landmarks if re.search(r'[\s,"]', name)), None)
    if unfit:
        raise UserError(f"landmark_id {unfit!r}: the format allows no spaces, commas or quotes; rename the class")
    content = json.dumps([model.facts, *zip(photos, map(version, photos.values()), strict=True)])
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    part = out.with_name(f".{out.name}.{key}.part")
    with stage.lock(part):
        stage.check_targets([out], [], force)  # an equal run may have written it
        done = resume(part)
        reasons = append(part, model, photos, done)
        stage.check_targets([out], [], force)  # so may another program, meanwhile
        part.replace(out)
    for other in sorted(out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 12}.part")):
        with stage.lock(other, wait=False) as unused:
            if unused:
                other.unlink(missing_ok=True)  # of an earlier run with other photos or another model
    earlier = f", {done} of an earlier run" if done else ""
    return f"{len(photos)} rows in {out}{earlier}{reasons and f' ({reasons})'}"


def version(photo: Path | None) -> tuple[str, int, int] | None:
    """Path, size and time of a photo, or None if it is missing."""
    try:
        facts = photo.stat() if photo else None
    except OSError:
        return None
    return facts and (str(photo), facts.st_size, facts.st_mtime_ns)


def resume(part: Path) -> int:
    """Keeps the rows of an earlier run in `part`, and returns their number.

    Only whole batches are kept, because the last digits of an answer depend on the batch.
    """
    content = part.read_bytes() if part.is_file() else b""
    content = content[: content.rfind(b"\n") + 1]  # the last row may be cut off, even within a character
    header, *rows = list(csv.reader(io.StringIO(content.decode()))) or [[]]
    rows = rows[: len(rows) // recognizer.BATCH * recognizer.BATCH]
    rows = rows if header == HEADER else []
    with part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    return len(rows)


def append(part: Path, model: Recognizer, photos: dict[str, Path | None], done: int) -> str:
    """Adds the rows after the first `done`; returns the number of pictures without an answer, by reason."""
    reasons = []
    with part.open("a", encoding="utf-8", newline="") as file, stage.progress(len(photos), "pictures") as bar:
        rows = csv.writer(file, lineterminator="\n")
        bar.update(done)
        paths = islice(photos.values(), done, None)
        answers = zip(islice(photos, done, None), model.recognise(paths), strict=True)
        for number, (name, (_, answer)) in enumerate(answers, done + 1):
            landmarks = ""
            if isinstance(answer, Unfit):
                reasons.append(str(answer))
            elif model.known(answer):
                (guess,) = model.best(answer, 1)
                landmarks = f"{guess.landmark_id} {guess.confidence:.6f}"
            else:
                reasons.append("not recognised")
            rows.writerow([name, landmarks])
            bar.update()
            if number % recognizer.BATCH == 0:
                file.flush()  # a killed run loses at most one batch
        file.flush()
        os.fsync(file.fileno())
    return stage.count_reasons(reasons)
