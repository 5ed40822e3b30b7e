"""The files below a folder: which are pictures, and why each other file is skipped."""

import heapq
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from landmarks.images import ENDINGS
from landmarks.stage.errors import reason

# What operating systems, file managers and storage devices leave in folders, in lower case.
SYSTEM = {
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "@recycle", "#recycle", "#snapshot", "lost+found", "__pycache__"),
}
CONTROL = "[\x00-\x1f\x7f-\x9f]"  # a pattern of the characters that would corrupt tables and terminals


class Scan(NamedTuple):
    """Paths below a folder, with `/`: the pictures, sorted; why each other file is skipped; and why each file, folder
    or link that cannot be read cannot."""

    pictures: list[str]
    skipped: dict[str, str]
    unreadable: dict[str, str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM


def scan(root: Path) -> Scan:
    """Finds the pictures below `root` by their endings, at any depth, and follows links to files and folders.

    Each file and folder counts once, by device and inode: a real entry before links to it, links in sorted order.
    Therefore loops of links end.
    """
    reasons: dict[str, str] = {}  # empty for a picture
    unreadable: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    entries = [(False, "", False)]  # whether a link leads to it, its path, whether it is hidden
    while entries:
        linked, name, hidden = heapq.heappop(entries)
        path = os.path.join(root, name)
        try:
            facts = os.stat(path, follow_symlinks=not hidden)
            key = None if hidden else (facts.st_dev, facts.st_ino)
            if stat.S_ISDIR(facts.st_mode) and key not in seen:
                for entry in os.scandir(path):
                    child = f"{name}/{entry.name}" if name else entry.name
                    heapq.heappush(entries, (linked or entry.is_symlink(), child, hidden or is_hidden(entry.name)))
                why = None
            else:
                why = "hidden" if hidden else "repeated" if key in seen else skip_reason(name, facts.st_mode)
                reasons[name] = why
            if key and not why:
                seen.add(key)
        except OSError as error:
            unreadable[name] = reason(error)
    skipped = {name: why for name, why in sorted(reasons.items()) if why}
    return Scan([name for name in sorted(reasons) if not reasons[name]], skipped, dict(sorted(unreadable.items())))


def printable(name: str) -> str:
    """A name as one line that every table can hold: control characters, and bytes that are not UTF-8, as `\\xNN`."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return re.sub(CONTROL, lambda found: f"\\x{ord(found[0]):02x}", text)


def skip_reason(name: str, mode: int) -> str:
    """Why a file is no picture; empty if it is one."""
    ending = os.path.splitext(name)[1].lower()
    if ending not in ENDINGS:
        return f"unsupported {ending}" if re.fullmatch(r"\.[a-z]\w{0,7}", ending, re.ASCII) else "unknown ending"
    return "" if stat.S_ISREG(mode) else "not a file"
