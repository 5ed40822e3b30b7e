"""The code that each stage of dvc.yaml depends on, computed from the imports of its script.

    .venv/bin/python -m tools.dependencies            print what is wrong in dvc.yaml
    .venv/bin/python -m tools.dependencies --write    correct it

The `deps` of a stage are its script, then the modules that it imports, directly or not, then data. A folder stands for
its modules if the script imports all of them. Nothing else in dvc.yaml changes.
"""

import re
import sys
from pathlib import Path

from landmarks import stage
from landmarks.stage import UserError
from landmarks.stage.imports import PACKAGES, ROOT, all_imports, module_file

PIPELINE = Path("dvc.yaml")


def code(script: str) -> list[str]:
    """The code dependencies of a stage that runs the module `script`, in the order in which dvc.yaml lists them."""
    file = module_file(script)
    if file is None:
        raise UserError(f"dvc.yaml: there is no module {script}; correct cmd")
    others = set(all_imports(file)) - {file}
    for folder in sorted({path.parent for path in others} - {ROOT / "landmarks"}):
        modules = set(folder.rglob("*.py"))
        if modules <= others:
            others = others - modules | {folder}
    return [path.relative_to(ROOT).as_posix() for path in (file, *sorted(others))]


def corrected(text: str) -> str:
    """dvc.yaml with the computed code dependencies of every stage."""
    lines: list[str] = []
    script, inside = "", False
    for line in text.splitlines():
        if found := re.match(r" *cmd: .*-m (stages\.\w+)", line):
            script = found[1]
        item = re.match(r" *- (\S+)", line)
        inside = inside and item is not None
        if inside and item and item[1].split("/")[0] in PACKAGES and Path(item[1]).suffix in ("", ".py"):
            continue
        lines.append(line)
        if found := re.match(r"( *)deps:$", line):
            inside = True
            lines += [f"{found[1]}  - {path}" for path in code(script)]
    return "\n".join(lines) + "\n"


def main() -> str:
    before = PIPELINE.read_text(encoding="utf-8")
    after = corrected(before)
    if before == after:
        return "dvc.yaml lists the code of every stage"
    if "--write" not in sys.argv:
        raise UserError("dvc.yaml: deps differ from the imports; run python -m tools.dependencies --write")
    with stage.atomic_output(PIPELINE) as part:
        part.write_text(after, encoding="utf-8")
    return "dvc.yaml corrected"


if __name__ == "__main__":
    stage.run(main)
