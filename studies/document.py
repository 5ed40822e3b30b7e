"""Sections of the pages that studies write: the command, the hardware, the duration, and tables."""

import re
import time

from benchmarks.speed import machine

import torch


def with_section(text: str, heading: str, body: str) -> str:
    """The document with the section `heading` replaced or added at its end."""
    start, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    named = dict(section.split("\n", 1) for section in sections) | {heading: f"\n{body}\n"}
    return "\n\n".join([start.strip(), *(f"## {name}\n\n{content.strip()}" for name, content in named.items())]) + "\n"


def origin(command: str, start: float, rows: int) -> str:
    """How the `rows` of a section were made by a command that began at `start` (of `time.monotonic`)."""
    minutes = (time.monotonic() - start) / 60
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"- Command: `{command}`\n- Hardware: {machine(gpu)}\n- Duration: {minutes:.0f} minutes for {rows} rows\n"
