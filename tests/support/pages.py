"""What Markdown pages say: their programs, and their commands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from typing import Any

from eqsat_deploy.cli.parser import parse

# Commands that are shown on lines of their own: they name models and files of the reader's, or download weights, so
# that they are parsed here and not run.
SHOWN = re.compile(r"^    (eqsat-deploy [a-z].*)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page with their languages."""
    return BLOCK.findall(text)


def commands(text: str) -> list[str]:
    """The commands that a page shows."""
    return SHOWN.findall(text)


def check_command(line: str) -> None:
    """It is one that there is; one that stands for several is not looked at."""
    words = shlex.split(line, comments=True)
    if not {"...", "DIR..."} & set(words):
        assert parse(words[1:]).run


def run(page: str, text: str, known: dict[str, Any]) -> int:
    """Run the programs of a page, one after another, and compare what they print with a block of text that follows
    directly; how many there are."""
    found = blocks(text)
    programs = 0
    for (kind, code), (after, said) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind != "python":
            continue
        programs += 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), known)
        if f"```python\n{code}```\n\n```text\n{said}" in text and after == "text":
            assert _lines(printed.getvalue()) == _lines(said), printed.getvalue()
    return programs


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
