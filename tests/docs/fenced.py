"""The fenced blocks of README.md and docs/, with the mark that stands in a comment before them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "cluster" / "README.md",
)
#: What ends one command of a line and begins the next.
_BETWEEN = {"&&", "||", ";", "|", "&", ">", ">>", "<", "2>"}


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is what a comment `<!-- run -->` on the line before it says, "" without one."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def script(self) -> str:
        """The shell's part: a bash block as it stands, of a console block the lines behind `$ ` with their continuations."""
        if self.language == "bash":
            return self.text
        taken, lines = False, []
        for line in self.text.split("\n"):
            if taken or line.startswith("$ "):
                lines.append(line.removeprefix("$ "))
                taken = line.endswith("\\")
        return "\n".join(lines)

    def commands(self) -> list[list[str]]:
        """The words of each command, comments and redirections left out."""
        found: list[list[str]] = []
        for line in self.script.replace("\\\n", " ").split("\n"):
            reader = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
            reader.whitespace_split = True
            words = list(reader)
            while words:
                end = next((i for i, word in enumerate(words) if word in _BETWEEN), len(words))
                found.append(words[:end])
                # a redirection takes one word more, the name of a file
                words = (
                    words[end + 2 :] if words[end : end + 1] in ([">"], [">>"], ["<"]) else words[end + 1 :]
                )
        return [words for words in found if words]


def blocks(*languages: str) -> list[Block]:
    """All blocks in one of these languages."""
    found = []
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").split("\n")
        start, language, mark = 0, "", ""
        inside = False
        for number, line in enumerate(lines, 1):
            fence = re.match(r"^\s*```(\S*)\s*$", line)
            if fence and not inside:
                inside, start, language = True, number, fence.group(1)
                before = re.match(r"^<!-- (.*?) -->$", lines[number - 2]) if number > 1 else None
                mark = before.group(1) if before else ""
            elif fence and inside:
                inside = False
                if language in languages:
                    found.append(Block(page, start, language, mark, "\n".join(lines[start : number - 1])))
    return found
