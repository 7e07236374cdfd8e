"""Checks README and docs: the links' targets and the commands exist, and the README's program runs."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from documents import DOCUMENTS, ROOT, Command, anchors, commands, links, python_blocks

from dpad.cli import main

README = ROOT / "README.md"
ALL = [command for document in DOCUMENTS if document.name != "CHANGELOG.md" for command in commands(document)]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    """Fails if a link names a file or a heading that does not exist."""
    for link in links(document):
        path, _, anchor = link.partition("#")
        if not re.match(r"https?://|mailto:", link):
            target = (document.parent / path).resolve() if path else document
            assert target.exists() and ROOT in (target, *target.parents), link
            assert not anchor or anchor in anchors(target), link


def test_commands_are_found() -> None:
    """Fails if the commands in the documents are not found, so that the tests below check nothing."""
    kinds = [command.words[0] for command in ALL]
    assert kinds.count("dpad") > 60 and kinds.count("make") > 60 and kinds.count("python") > 5
    assert {"export", "serve", "replay", "report"} <= {command.words[1] for command in ALL if len(command.words) > 1}


def known(command: Command) -> click.Context:
    """The context of the innermost `dpad` command named; raises click's error for an unknown command or option."""
    group: click.Command = main
    context = click.Context(main, info_name="dpad")
    words = list(command.words[1:])
    if words[:1] == ["report"] and len(words) > 1:
        words = words[1:]
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no such command {words[0]!r}")
        group, context, words = found, click.Context(found, parent=context, info_name=words[0]), words[1:]
    options = {name for each in group.get_params(context) for name in (*each.opts, *each.secondary_opts)}
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in options:
            raise click.UsageError(f"{context.command_path} has no option {word}")
    return context


@pytest.mark.parametrize(
    "command", [each for each in ALL if each.words[0] == "dpad"], ids=lambda each: " ".join(each.words)
)
def test_commands_of_dpad_exist(command: Command) -> None:
    """Fails if a document names a command or an option that `dpad` does not have."""
    known(command)


def test_commands_that_do_not_exist_are_caught() -> None:
    """Fails if the check above accepts an unknown command or option."""
    for words in (["dpad", "exprot"], ["dpad", "export", "tiny", "--outt", "x"], ["dpad", "plugin", "zork"]):
        with pytest.raises(click.UsageError):
            known(Command("", words))


@pytest.mark.parametrize(
    "command", [each for each in ALL if each.words[0] == "make"], ids=lambda each: " ".join(each.words)
)
def test_targets_of_make_exist(command: Command) -> None:
    """Fails if a document names a target of make or a benchmark that does not exist."""
    for word in command.words[1:]:
        name, assigned, value = word.partition("=")
        if name == "BENCH" and assigned:
            assert all((ROOT / "benchmarks" / f"{each}.py").exists() for each in value.split()), command
        elif not assigned:
            assert word in TARGETS, command


@pytest.mark.parametrize(
    "command", [each for each in ALL if each.words[0] == "python"], ids=lambda each: " ".join(each.words)
)
def test_programs_exist(command: Command) -> None:
    """Fails if a document runs a file or a module that does not exist."""
    _, kind, *rest = command.words
    if kind == "-m":
        module = rest[0].removeprefix("dpad.").replace(".", "/")
        assert not rest[0].startswith("dpad") or any(ROOT.glob(f"{module}*")), command
    elif kind != "-c":
        assert (ROOT / kind).exists(), command


def test_the_readme_is_for_ten_minutes() -> None:
    """Fails if the README is longer than 150 lines."""
    assert len(README.read_text().splitlines()) <= 150


def test_the_readme_s_program_runs(tmp_path: Path, whole: Path) -> None:
    """Fails if the README's program gives an error or prints nothing."""
    (program,) = python_blocks(README)
    ran = subprocess.run(
        [sys.executable, "-c", program.replace('"bundles/tiny"', repr(str(whole)))],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") > 4
