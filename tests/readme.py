"""The README's examples, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def code_blocks(language: str) -> list[str]:
    """Bodies of the fenced blocks in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def commands_with(program: str) -> list[str]:
    """Shell commands that start with ``program``, continuation lines joined, comments cut."""
    joined = "\n".join(code_blocks("bash")).replace("\\\n", " ")
    commands = [re.sub(r"\s+# .*$", "", line) for line in joined.splitlines()]
    return [command for command in commands if re.match(rf"(\w+=\S+ )*{program}\b", command)]
