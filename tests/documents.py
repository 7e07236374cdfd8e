"""Reads the documents of the repository: their links, headings, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
)
NOT_CODE = ("json", "python", "text", "yaml")  # languages of fences that hold no commands
_SNIPPETS = re.compile(r"^(?:--8<--|:::|\s+:\w+:).*$", re.MULTILINE)  # of the site's extensions


class Command(NamedTuple):
    """A command in a document, as words split by the shell's rules."""

    document: str
    words: list[str]


def tokens(document: Path) -> list[Token]:
    """The tokens of a document, parsed by GitHub's rules."""
    return MarkdownIt("commonmark").enable("table").parse(_SNIPPETS.sub("", document.read_text("utf-8")))


def links(document: Path) -> Iterator[str]:
    """The targets of a document's links and pictures."""
    for token in tokens(document):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield str(target)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, by the rule of GitHub and of the site."""
    inline = [token.content for token, next_one in _pairs(document) if token.type == "inline" and next_one == "heading"]
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[*`]", "", text).lower()).strip().replace(" ", "-") for text in inline}


def _pairs(document: Path) -> Iterator[tuple[Token, str]]:
    """Each token with `heading` if it is the text of a heading, else an empty string."""
    before = ""
    for token in tokens(document):
        yield token, before
        before = "heading" if token.type == "heading_open" else ""


def python_blocks(document: Path) -> list[str]:
    """The Python programs in a document."""
    return [token.content for token in tokens(document) if token.type == "fence" and token.info == "python"]


def commands(document: Path) -> Iterator[Command]:
    """The commands in code blocks and inline code that begin with `dpad`, `make` or a Python of the project."""
    for token in tokens(document):
        if token.type == "code_block" or (token.type == "fence" and token.info not in NOT_CODE):
            lines = token.content.replace("\\\n", " ").splitlines()
        else:
            lines = [child.content for child in token.children or () if child.type == "code_inline"]
        for line in lines:
            for part in re.split(r"&&|;|\|", line.removeprefix("$ ")):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:  # a quotation mark of prose
                    continue
                while words and re.fullmatch(r"\w+=\S*", words[0]):
                    words = words[1:]
                if words[:1] in (["dpad"], ["make"]) or words[:1] == ["python"]:
                    yield Command(document.relative_to(ROOT).as_posix(), words)
