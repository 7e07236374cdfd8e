"""The command line with pipes, devices and terminals: control characters are escaped, and every failure is reported."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, export, write_source
from checkpoints import random_weights, raw_config, write_checkpoint
from click.testing import CliRunner

from dpad.cli import main
from dpad.commands.lines import print_text, say
from dpad.commands.terminal import TerminalProgress
from dpad.runtime.show import counted, escaped, shown, told

EVIL = "a\x1b[2Jb\rc\x9b1md\u202ee\x07"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bundle`, and `bare`, a bundle of a checkpoint without a tokenizer."""
    folder = tmp_path_factory.mktemp("terminal")
    export(write_source(folder / "source"), folder / "bundle")
    raw = raw_config("llada", width=128, heads=2, kv_heads=1, max_length=256)
    write_checkpoint(folder / "bare-source", raw, random_weights(raw))
    export(folder / "bare-source", folder / "bare")
    return folder


def run(*arguments: object, stdin: str | None = None) -> Any:
    """Run a command in this process; errors that it does not handle are raised."""
    return CliRunner().invoke(main, [*map(str, arguments)], input=stdin, catch_exceptions=False)


@pytest.mark.parametrize("ids", ["5 6 7", "5,6, 7", " [5, 6, 7]\n", "5\n6\t7"])
@pytest.mark.parametrize("way", ["option", "standard input"])
def test_token_ids_on_the_command_line(folder: Path, ids: str, way: str) -> None:
    """Fails if a bundle without a tokenizer cannot be used with --ids, or prints anything but token ids."""
    given = (ids, None) if way == "option" else ("-", ids)
    command = ("generate", folder / "bare", "--ids", given[0], "--gen-length", 32, "--seed", 1)
    told = run(*command, stdin=given[1])
    document = json.loads(run(*command, "--json", stdin=given[1]).stdout)
    assert document["canvas"][:3] == [5, 6, 7]
    assert told.stdout == " ".join(map(str, document["token_ids"])) + "\n"
    assert "block 1/1 step 1" in run(*command, "--show-steps", stdin=given[1]).stderr
    told = run("generate", folder / "bundle", "--ids", *given[:1], "--gen-length", 32, stdin=given[1])
    assert re.search(r"w\d|^$", told.stdout)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("bare", "w5"), 1, "no tokenizer; pass token ids .*--ids"),
        (("bare", "--ids", "5 6.5"), 1, "--ids '5 6.5' must be integers"),
        (("bare", "--ids", "[5, [6]]"), 1, "must be integers"),
        (("bare", "--ids", "1_000 2"), 1, "--ids '1_000 2' must be integers"),
        (("bare", "--ids", "\u0663"), 1, "must be integers"),
        (("bare", "--ids", "[" * 9000), 1, "must be integers"),
        (("bare", "--ids", "1" * 9000), 1, "must be integers"),
        (("bare", "--ids", "1" * 400), 1, "too large"),
        (("bare", "--ids", "999"), 1, "outside the vocabulary"),
        (("bare", "w5", "--ids", "5"), 2, "not both"),
        (("bare",), 2, "Missing argument 'PROMPT', or --ids"),
        (("bundle", "w5", "--positions", "/dev/zero"), 1, "--positions .*not a regular file"),
        (("bundle", "w5", "--positions", "/proc/self/mem"), 1, "--positions "),
        (("bundle", "w5", "--positions", "/"), 1, "--positions .*[Dd]irectory"),
        (("bundle", "w5", "--positions", "PIPE"), 1, "--positions .*not a regular file"),
        (("bundle", "w5", "--positions", "[[1e400]]"), 1, "lists of integers.* inf of block 0"),
        (("bundle", "w5", "--positions", "{}x"), 1, "--positions"),
        (("bundle", "w5", "--positions", ""), 1, r"--positions is empty; give \[\[60, 61\], \[\]\], a list"),
        (("bundle", "w5", "--positions", '{"a":1}'), 1, r"--positions {'a': 1} must be \[\[60, 61\], \[\]\], a list"),
        (("bundle", "w5", "--positions", "[60, 61]"), 1, r"--positions \[60, 61\] must be \[\[60, 61\], \[\]\]"),
        (("bundle", "-", "--positions", "-"), 2, "Only one of PROMPT, --ids and --positions"),
        (("bundle", "w5", "--engine", "TORCH"), 1, "it has auto, .*onnxruntime-cpu, .*eager, eager-cuda"),
        (("bundle", "w5", "--raw", "--positions", "[[20]]"), 1, "position 20 of block 0 is not behind the block"),
        (("bundle", "w5", "--seed", "1" * 400), 1, "seed of"),
        (("bundle", "w5", "--seed", "1" * 9000), 2, "--seed"),
        (("bundle", "w5", "--threads", "1000000000"), 1, "threads 1000000000"),
        (("bundle", "w5", "--k", "nan"), 1, "k nan"),
        (("bundle", "w5", "--temperature", "1e400"), 1, "temperature inf"),
        (("bundle", "\udcff"), 1, "not valid Unicode"),
        (("bundle", "w5", "--engine", EVIL), 1, r"no engine 'a\\x1b\[2Jb"),
        (("bundle", "w5", "--preset", EVIL), 1, r"preset 'a\\x1b\[2Jb"),
        (("bundle", "w5", "--cache", EVIL), 2, r"a\\x1b\[2Jb|'a"),
        (("/dev/null", "w5"), 1, "is not a directory|is a file"),
        ((f"/nowhere/{EVIL}", "w5"), 1, r"a\\x1b\[2Jb"),
        (("/nowhere/\udcff", "w5"), 1, r"\\udcff"),
    ],
)
def test_arguments_of_generate(folder: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    """Fails if an argument gives a traceback, hangs, or is printed with control characters."""
    os.path.exists(folder / "pipe") or os.mkfifo(folder / "pipe")
    names = {"bare": str(folder / "bare"), "bundle": str(folder / "bundle"), "PIPE": str(folder / "pipe")}
    ran = run("generate", *(names.get(argument, argument) for argument in arguments))
    assert (ran.exit_code, ran.stdout) == (status, "")
    assert re.search(said, ran.stderr), ran.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ran.stderr)


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_positions_may_come_with_a_mark_of_their_encoding(folder: Path, tmp_path: Path, way: str) -> None:
    """Fails if a file with a byte order mark is refused, or `-` does not read standard input."""
    text = "\ufeff[[40]]"
    (tmp_path / "positions.json").write_text(text, encoding="utf-8")
    command = ("generate", folder / "bundle", "w5", "--raw", "--gen-length", 64, "--json", "--positions")
    given, stdin = (tmp_path / "positions.json", None) if way == "file" else ("-", text)
    assert (
        run(*command, given, stdin=stdin).stdout.split('"engine"')[0]
        == (run(*command, "[[40]]").stdout.split('"engine"')[0])
    )


@pytest.mark.parametrize("option", ["", "--ids", "w5 --positions"])
def test_standard_input_without_an_end_is_left(folder: Path, option: str) -> None:
    """Fails if standard input that never ends is read until memory is exhausted."""
    command = f"yes 5 | {sys.executable} -m dpad generate {folder / 'bundle'} {option} -"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 1
    assert "standard input has over 67108864 characters" in ran.stderr


@pytest.mark.parametrize("arguments", [["\u00fc"], ["w5", "--suffix", "\u00fc"]])
def test_a_locale_that_is_not_utf8_is_named(folder: Path, arguments: list[str]) -> None:
    """Fails if the error for valid text in a locale that is not UTF-8 does not name the locale and the way out."""
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "dpad", "generate", str(folder / "bundle"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **locale})
    assert (ran.returncode, "PYTHONUTF8=1" in ran.stderr) == (1, True), ran.stderr


def test_a_bundle_without_a_tokenizer_says_so(folder: Path, tmp_path: Path) -> None:
    """Fails if export, inspect or --sample does not report that the bundle has no tokenizer."""
    assert "tokenizer none: prompts are token ids" in run("inspect", folder / "bare").stdout
    assert "tokenizer none" not in run("inspect", folder / "bundle").stdout
    ran = run("export", folder / "bare-source", "--out", tmp_path / "out", "--no-parity", "--sample", "w5")
    assert ran.exit_code == 0
    assert ran.stderr.splitlines()[0].startswith("no sample will be written: ")
    assert "no sample: the bundle has no tokenizer" in ran.stdout


def test_nothing_of_a_bundle_commands_a_terminal(tmp_path: Path) -> None:
    """Fails if names, versions or errors from a manifest are printed with control characters."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out").directory
    edit(bundle, lambda data: data.update(name=EVIL, architecture=EVIL))
    edit(bundle, lambda data: data["provenance"].update(source=EVIL, versions={EVIL: EVIL + "\nparity    passed"}))
    ran = run("inspect", bundle)
    assert ran.exit_code == 0
    assert r"a\x1b[2Jb\rc\x9b1md\u202ee\x07: " in ran.stdout
    assert r"\nparity    passed" in ran.stdout
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ran.output)


def test_progress_and_warnings_are_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if progress or a warning prints control characters from a path, a tensor's name or a library."""
    for terminal in ("0", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        progress = TerminalProgress()
        with progress.task(EVIL):
            progress.say(EVIL)
    shown_there = capsys.readouterr().err
    assert r"a\x1b[2Jb" in shown_there and "\x1b[2J" not in shown_there


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text_is_exact_in_a_pipe_and_harmless_on_a_terminal(terminal: bool) -> None:
    """Fails if generated text is not escaped on a terminal, or is changed in a pipe."""
    code = f"from dpad.commands.lines import print_text; print_text({EVIL + chr(10) + chr(9)!r})"
    reader, writer = pty.openpty() if terminal else os.pipe()
    subprocess.run([sys.executable, "-c", code], stdout=writer, check=True)
    os.close(writer)
    with open(reader, "rb", buffering=0) as file:
        text = file.read(1000).decode()
    assert ("\x1b" in text) is not terminal
    if not terminal:
        assert text == EVIL + "\n\t\n"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("--help >/dev/full", 1, "No space left"),
        ("--version >/dev/full", 1, "No space left"),
        ("generate --help >&-", 1, "standard output is closed"),
        ("--version >&-", 1, "standard output is closed"),
        ("--version | true", 0, ""),
        ("inspect /nowhere 2>/dev/full", 1, ""),
        ("inspect /nowhere 2>&-", 1, ""),
    ],
)
def test_every_output_may_be_full_or_closed(command: str, status: int, said: str) -> None:
    """Fails if output that cannot be written, --help included, gives status 0 or a traceback."""
    command = f"{sys.executable} -m dpad {command}"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, "Traceback" in ran.stderr) == (status, False)
    assert said in ran.stderr and len(ran.stderr.splitlines()) == bool(said)


def test_closed_streams_are_not_taken_by_files() -> None:
    """Fails if a file opened by a command gets the descriptor of a closed stream, so that libraries print into it."""
    code = (
        "import os; from dpad.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print(os.open('/dev/null', os.O_RDONLY) > 2)"
    )
    ran = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{code}" <&- 2>&-'], capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines()[-1] == "True"


class Interrupted(io.BytesIO):
    """A standard input that raises KeyboardInterrupt when it is read."""

    def read(self, size: int | None = -1) -> bytes:
        if size == 0:  # only tests whether this is bytes or text
            return b""
        raise KeyboardInterrupt

    def read1(self, size: int | None = -1) -> bytes:
        return self.read()


@pytest.mark.parametrize("command", [("bundle", "-"), ("bare", "--ids", "-")])
def test_an_interrupt_ends_a_command_with_one_line(folder: Path, command: tuple[str, ...]) -> None:
    """Fails if Ctrl-C shows a traceback, or gives the exit status of an error."""
    arguments = ["generate", str(folder / command[0]), *command[1:]]
    ran = CliRunner().invoke(main, arguments, input=Interrupted(), catch_exceptions=False)
    assert (ran.exit_code, ran.stderr.strip()) == (130, "dpad: stopped")


def test_values_are_shown_short_and_in_one_line() -> None:
    """Fails if showing a value raises an error, never ends, or fills the message."""

    class Bad:
        def __repr__(self) -> str:
            raise ValueError

        __str__ = __repr__

    class Evil:
        def __repr__(self) -> str:
            return EVIL * 100

    nested: list[Any] = []
    nested.append(nested)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for value in (Bad(), Evil(), nested, deep, 10**5000, [10**5000], "x" * 10**6, {1: Bad()}, float("inf"), "\ud800"):
        text = shown(value)
        assert text and len(text) <= 240 and text.isprintable(), text
    assert shown(10**5000) == "<integer of 16610 bits>"
    assert told(ValueError(Bad())) == "ValueError" and told(ValueError("a\nb")) == r"a\nb"
    assert escaped("a\n\t\x1b", lines=True) == "a\n\t\\x1b"
    assert [counted(n, "block") for n in (0, 1, 2)] == ["0 blocks", "1 block", "2 blocks"]


def test_lines_reach_their_stream(capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a line is lost, or written to the other stream."""
    say("a\x1b")
    say("b", err=True)
    print_text("c\x1b")
    assert tuple(capsys.readouterr()) == ("a\\x1b\nc\x1b\n", "b\n")
