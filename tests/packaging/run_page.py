"""Runs the examples of one page of documentation, in order, in the current directory: `run_page.py PAGE.md`.

A comment on the line before a fenced block says what the block is:

    <!-- run -->            python: executed; console: every line after "$ " is executed; yaml: a job, run by `neural-tune run`
    <!-- run: exit 1 -->    the same, and it has to end with that exit code
    <!-- file: NAME -->     written to NAME, for blocks that follow
    <!-- skip: REASON -->   not executed

Python blocks of one page share their names, as if typed into one session. The process ends with a traceback whose file
and line are those of the page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("python", "console", "yaml")
_MARK = re.compile(r"^<!-- (run|file|skip)(?:: (.+?))? -->$")
_FENCE = re.compile(r"^```(\w*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what its mark says, its text, and the number of its first line in the page."""

    language: str
    mark: str
    argument: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order; `mark` is empty where there is no comment."""
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if not opening:
            number += 1
            continue
        end = lines.index("```", number + 1)
        mark = _MARK.match(lines[number - 1]) if number else None
        kind, argument = mark.groups() if mark else ("", "")
        yield Block(opening[1], kind, argument or "", "\n".join(lines[number + 1 : end]) + "\n", number + 2)
        number = end + 1


def main(path: Path) -> None:
    session: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.mark == "file":
            target = Path(block.argument)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.mark == "run" and block.language == "python":
            # Empty lines in front make the line numbers of a traceback those of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), session)
        elif block.mark == "run" and block.language == "yaml":
            job = Path(f"job_line_{block.line}.yaml")
            job.write_text(block.text, encoding="utf-8")
            shell(f"neural-tune run {job}", block, path)
        elif block.mark == "run":
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    shell(line[2:], block, path)


def shell(command: str, block: Block, path: Path) -> None:
    expected = int(block.argument.removeprefix("exit ") or 0)
    print(f"$ {command}", flush=True)
    code = subprocess.run(["bash", "-c", command], check=False, stdin=subprocess.DEVNULL).returncode
    if code != expected:
        sys.exit(f"{path}:{block.line}: {command!r} ended with exit code {code}, expected {expected}")


if __name__ == "__main__":
    sys.path.insert(0, "")
    main(Path(sys.argv[1]))
