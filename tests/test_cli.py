"""The command line, run in a process of its own as by a user."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import write_source
from click.testing import CliRunner

from dpad import load
from dpad.cli import main
from dpad.commands.terminal import TerminalProgress

ROOT = Path(__file__).resolve().parent.parent


def dpad(*arguments: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dpad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=stdin)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle exported by the command line, with parity."""
    folder = tmp_path_factory.mktemp("cli")
    ran = dpad("export", write_source(folder / "source"), "--out", folder / "out", "--sample", "w5 w6")
    assert ran.returncode == 0, ran.stderr
    assert "onnxruntime-cpu (float32): within tolerance" in ran.stderr
    assert "positions committed with the same token in the same pass" in ran.stderr
    assert "exported" in ran.stdout
    assert "> w5 w6" in ran.stdout
    return folder / "out"


def test_a_sample_is_part_of_the_json(bundle: Path, tmp_path: Path) -> None:
    """Fails if the JSON of an export with --sample has neither a sample nor the reason why there is none."""
    command = ["export", str(bundle.parent / "source"), "--no-parity", "--sample", "w5 w6", "--json", "--out"]
    told = CliRunner().invoke(main, [*command, str(tmp_path / "a")])
    sample = json.loads(told.stdout)["sample"]
    written = load(tmp_path / "a").generate("w5 w6")
    assert (sample["prompt"], sample["text"], sample["nfe"]) == ("w5 w6", written.text, written.nfe)
    told = CliRunner().invoke(main, [*command, str(tmp_path / "b"), "--dtype", "bfloat16"])
    sample = json.loads(told.stdout)["sample"]
    assert sample.keys() == {"prompt", "obstacle"} and "onnxruntime-cuda" in sample["obstacle"]


@pytest.mark.parametrize("command", ["export", "generate", "serve", "replay", "parity", "eval", "inspect", "synth"])
def test_help_describes_every_option(command: str) -> None:
    """Fails if an option has no help text."""
    ran = dpad(command, "--help")
    assert ran.returncode == 0
    lines = ran.stdout.split("Options:")[1].splitlines()
    for line in lines:
        if line.startswith("  -") and line.strip() != "-h, --help":
            assert line.count("  ") > 1 or line.endswith(("]", ">")) or len(line) > 30, line


def test_generate_prints_text_and_facts(bundle: Path) -> None:
    """Fails if standard output holds anything besides the text."""
    ran = dpad("generate", bundle, "w5 w6", "--gen-length", 32)
    assert ran.returncode == 0, ran.stderr
    assert "passes" in ran.stderr
    assert "passes" not in ran.stdout


def test_generate_json_is_one_document_and_repeatable(bundle: Path) -> None:
    """Fails if JSON is mixed with prose, or the same command gives another text."""
    first, second = (
        json.loads(dpad("generate", bundle, "-", "--gen-length", 32, "--json", stdin="w5 w6").stdout) for _ in range(2)
    )
    assert first["token_ids"] == second["token_ids"]
    assert first["engine"] == "onnxruntime-cpu"
    assert len(first["commit_steps"]) == 32
    torch = json.loads(dpad("generate", bundle, "w5 w6", "--gen-length", 32, "--json", "--engine", "eager").stdout)
    assert torch["canvas"] == first["canvas"]
    assert torch["nfe"] == first["nfe"]


def test_show_steps_shows_every_pass(bundle: Path) -> None:
    """Fails if a pass is not shown."""
    ran = dpad("generate", bundle, "w5 w6", "--gen-length", 32, "--decoder", "fixed", "--steps", 8, "--show-steps")
    passes = [line for line in ran.stderr.splitlines() if line.startswith("block ")]
    assert passes
    assert all(line.count(":'") + line.count(':"') == 4 for line in passes)


def test_infill_and_raw_prompts(bundle: Path) -> None:
    """Fails if the suffix text is lost, or a raw prompt is wrapped as chat."""
    document = json.loads(
        dpad("generate", bundle, "w5 w6", "--raw", "--suffix", "w9 w10", "--gen-length", 32, "--json").stdout
    )
    assert document["canvas"][:2] == [5, 6]
    assert document["canvas"][-2:] == [9, 10]


def test_suffix_positions_can_be_given(bundle: Path, tmp_path: Path) -> None:
    """Fails if --positions has no effect, or if a file and JSON give different results."""
    command = ("generate", bundle, "w5 w6", "--raw", "--gen-length", 64, "--decoder", "fixed", "--json")
    every = json.dumps([list(range(34, 66)), []])
    (tmp_path / "positions.json").write_text(every)
    given = json.loads(dpad(*command, "--positions", every).stdout)
    assert json.loads(dpad(*command, "--positions", tmp_path / "positions.json").stdout)["canvas"] == given["canvas"]
    assert json.loads(dpad(*command, "--schedule", "none").stdout)["canvas"] == given["canvas"]
    assert json.loads(dpad(*command, "--positions", "[[], []]").stdout)["canvas"] != given["canvas"]
    spaced = every.replace(",", "," + 9 * " ")  # longer than any file name
    assert json.loads(dpad(*command, "--positions", spaced).stdout)["canvas"] == given["canvas"]


def test_options_that_count_for_nothing_are_named(bundle: Path) -> None:
    """Fails if an option that the decoder or schedule does not use is not reported, or changes the result."""
    command = ("generate", bundle, "w5", "--gen-length", 128)  # 4 blocks
    ran = dpad(*command, "--steps", 7, "--count", 0)
    assert ran.returncode == 0, ran.stderr
    assert "note: --steps does nothing with --decoder threshold" in ran.stderr
    assert "note: --count does nothing with --schedule gaussian" in ran.stderr
    assert "note:" not in dpad(*command, "--steps", 4, "--decoder", "fixed", "--window", 8).stderr
    ran = dpad(*command, "--positions", "[[], [], [], []]", "--schedule", "uniform", "--window", 900)
    assert ran.returncode == 0, ran.stderr
    notes = [line for line in ran.stderr.splitlines() if line.startswith("note:")]
    assert notes == [f"note: --{name} does nothing with --positions" for name in ("schedule", "window")]


def test_the_cursor_comes_back(bundle: Path) -> None:
    """Fails if the cursor stays hidden after an interruption of --show-steps."""
    command = [sys.executable, "-m", "dpad", "generate", str(bundle), "w5", "--show-steps", "--decoder", "fixed"]
    ours, theirs = pty.openpty()
    ran = subprocess.Popen([*command, "--gen-length", "192"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while b"pass 2" not in shown:
        shown += os.read(ours, 1 << 16)
    ran.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # reading at the end of a terminal is an error
        while more := os.read(ours, 1 << 16):
            shown += more
    assert ran.wait() == 130, "it was not interrupted"
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0


def test_inspect_says_what_runs_here(bundle: Path) -> None:
    """Fails if files, engines, limits or parity are missing."""
    ran = dpad("inspect", bundle)
    for said in (
        "LLaDAModelLM",
        "canvas 256 tokens",
        "float32/step.onnx",
        "onnxruntime-cpu (float32): runs here",
        "passed",
    ):
        assert said in ran.stdout
    document = json.loads(dpad("inspect", bundle, "--json").stdout)
    assert document["manifest"]["schema_version"] == 2
    assert any(engine["runs_here"] for engine in document["engines"])


def test_parity_writes_its_report_into_the_bundle(bundle: Path) -> None:
    """Fails if the report is not kept, or the bundle no longer opens afterwards."""
    ran = dpad("parity", bundle, "--steps", 1, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == json.loads((bundle / "parity.json").read_text())
    assert dpad("inspect", bundle).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "/nowhere", "w5"), "MissingFile"),
        (("generate", "BUNDLE", "<mask>"), "special token <mask>"),
        (("generate", "BUNDLE", "<mask>", "--parse-special"), "mask id"),
        (("generate", "BUNDLE", "w5", "--gen-length", "30"), "does not divide"),
        (("generate", "BUNDLE", "w5", "--window", "900"), "window 900"),
        (("generate", "BUNDLE", "w5", "--gen-length", "512"), "over this bundle's 256"),
        (("generate", "BUNDLE", "w5", "--top-k", "3"), "temperature"),
        (("generate", "BUNDLE", "w5", "--engine", "abacus"), "has no engine 'abacus'"),
        (("generate", "BUNDLE", "w5", "--show-steps", "--block-length", "0"), "block_length 0"),
        (("generate", "BUNDLE", "w5", "--show-steps", "--gen-length", "100000000000"), "over this bundle's 256"),
        (("generate", "BUNDLE", "w5 " * 9999, "--parse-special"), "a text of 29997 characters"),
        (("generate", "BUNDLE", "w5", "--positions", "[[1"), "--positions"),
        (("generate", "BUNDLE", "w5", "--positions", "[" * 50_000), "--positions"),
        (("generate", "BUNDLE", "w5", "--positions", "[[4, 2], [], [], []]"), "block 0"),
        (("export", "no-such-model", "--out", "BUNDLE-2"), "tiny"),
        (("export", "owner/model", "--out", "BUNDLE-2"), "hf download owner/model"),
        (("parity", "BUNDLE", "--engine", "abacus"), "abacus"),
        (("inspect", "x" * 300), "File name too long: 'xxx"),
        (("plugin", "compile", "--out", "/proc/x"), "No such file or directory: '/proc/x'"),
    ],
)
def test_errors_are_one_line_with_the_way_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    """Fails if a user's mistake gives a traceback or status 0."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = dpad(*(argument.replace("BUNDLE", str(bundle)) for argument in arguments))
    assert ran.returncode == 1
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("dpad: ")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("generate BUNDLE - <&-", "standard input, which is closed"),
        ("generate BUNDLE w5 >&-", "standard output is closed"),
        ("inspect BUNDLE --json >/dev/full", "No space left on device"),
    ],
)
def test_streams_that_are_closed_or_full_are_told(bundle: Path, command: str, said: str) -> None:
    """Fails if a command whose output was not written has status 0, or gives a traceback."""
    command = f"{sys.executable} -m dpad {command.replace('BUNDLE', str(bundle))}"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, input="")
    assert ran.returncode == 1
    assert ran.stderr.startswith("dpad: ")
    assert said in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("terminal", ["0", "1"])
def test_progress_is_told_as_it_stands(
    terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if brackets in a path or a command are interpreted as markup."""
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    progress = TerminalProgress()
    with progress.task("copy a[b]/[/y].safetensors"):
        progress.say("x[/y]: pip install 'dpad[rtx]' :x:")
    told = capsys.readouterr().err
    assert "x[/y]: pip install 'dpad[rtx]' :x:" in told
    assert ("copy a[b]/[/y].safetensors" in told) is (terminal == "1")


@pytest.mark.parametrize("model", ["checkpoint", "./checkpoint/", "owner/checkpoint"])
def test_make_names_a_bundle_after_its_model(model: str) -> None:
    """Fails if a slash after the directory's name makes bundles/ itself the bundle."""
    command = ["make", "-n", "export", f"MODEL={model}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"dpad export {model} --out bundles/checkpoint " in ran.stdout


def test_errors_in_json_mode_are_json(bundle: Path) -> None:
    """Fails if an error with --json is not JSON."""
    ran = dpad("generate", bundle, "w5", "--gen-length", 30, "--json")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["error"] == "InvalidRequest"
