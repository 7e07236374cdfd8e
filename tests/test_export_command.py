"""The export command in an error message makes the same bundle again, with the missing part added."""

import shlex
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, export, write_source
from click.testing import CliRunner
from test_travel import to_hub_cache

import dpad
from dpad.cli import main
from dpad.commands import export as command
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.export_command import export_command
from dpad.runtime.bundle.manifest import SCHEMA_VERSION, BuildFlags, EngineEntry
from dpad.runtime.engines.candidates import require_match
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.errors import AlteredFile, EngineMismatch, EngineUnavailable, SchemaVersionError

LIMITS: dict[str, Any] = {"max_batch": 8, "max_length": 128, "block_length": 16, "window": 64}
TEXTS = ("file", "onnx", "target", "variant", "library", "library_version", "compute_capability", "platform")
FLAGS = BuildFlags(True, True, True, True, 64)
EVERY = ExportSettings(
    targets=("onnx", "tensorrt-rtx"),
    dtypes=("float16", "float32"),
    capabilities=("8.9", "8.6"),
    attention="plugin",
    flags=FLAGS,
    weights=("full", "int4"),
    group=64,
    chat_template="rag",
    **LIMITS,
)


class Asked(Exception):
    """Raised with the arguments of `dpad export` instead of an export."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export")
    return export(write_source(folder / "the model"), folder / "out", dtypes=("float16",), **LIMITS)


@pytest.fixture
def bundle(whole: Bundle, tmp_path: Path) -> Bundle:
    """A 16-bit copy with limits of its own; its paths hold characters that a shell would interpret."""
    return Bundle(Path(shutil.copytree(whole.directory, tmp_path / "it's; out")), whole.manifest)


def run(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "dpad"
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output


def asked(monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[str, Path, ExportSettings, bool]:
    """Model, directory, settings and whether parity runs, as parsed by the command line from `line`."""

    def export_bundle(model: str, out: Path, settings: ExportSettings, *more: Any, check: Any, force: bool) -> None:
        raise Asked(model, out, settings, check is not None)

    monkeypatch.setattr(command, "export_bundle", export_bundle)
    with pytest.raises(Asked) as told:
        command.command(shlex.split(line)[2:], standalone_mode=False)
    model, out, settings, parity = told.value.args
    return model, out, settings, parity


def test_the_step_that_was_missing_is_added(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the command in the message removes the existing step, or resets a limit to its default."""
    monkeypatch.setattr(Machine, "current", classmethod(lambda cls: Machine("linux-x86_64", None, "no GPU")))
    with pytest.raises(EngineUnavailable) as refused:
        dpad.load(bundle.directory)
    [line] = [line for line in str(refused.value).splitlines() if "float32 step: " in line]
    run(line.partition("float32 step: ")[2])
    after = Bundle.open(bundle.directory).manifest
    assert after.contract == bundle.manifest.contract
    assert set(after.steps) == {"float16", "float32"}
    dpad.load(bundle.directory).close()


def test_a_damaged_bundle_is_made_again_as_it_was(bundle: Bundle) -> None:
    """Fails if the command for a damaged bundle has other settings than the bundle."""
    weights = bundle.path("float16/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(AlteredFile) as refused:
        Bundle.open(bundle.directory)
    run(str(refused.value).partition("make the bundle again: ")[2])
    assert Bundle.open(bundle.directory).manifest == bundle.manifest


@pytest.mark.parametrize("settings", [EVERY, ExportSettings()])
def test_no_setting_is_lost(monkeypatch: pytest.MonkeyPatch, settings: ExportSettings) -> None:
    """Fails if a setting is missing in the arguments, or `dpad export` has no option of that name."""
    same = [each.name for each in fields(settings) if getattr(EVERY, each.name) == getattr(ExportSettings(), each.name)]
    assert same == []
    line = export_command({"source": "a model", "arguments": settings.arguments()}, Path("it's; out"))
    assert asked(monkeypatch, line) == ("a model", Path("it's; out"), settings, True)
    assert (line.count(" --") == 1) is (settings == ExportSettings())


@pytest.mark.parametrize("checked", [True, False])
def test_an_export_keeps_its_arguments(whole: Bundle, tmp_path: Path, checked: bool) -> None:
    """Fails if a bundle's arguments lack defaults taken from the checkpoint, so that adding a dtype removes another."""
    source, settings = whole.manifest.provenance["source"], ExportSettings(max_batch=2)
    check = (lambda stage, manifest, progress: {"passed": None}) if checked else None
    bundle, _ = export_bundle(source, tmp_path / "out", settings, Progress(), check=check)
    arguments = ["--dtype=float32", "--max-batch=2", "--max-length=256", *([] if checked else ["--no-parity"])]
    assert bundle.manifest.provenance["arguments"] == arguments


@pytest.mark.parametrize(("target", "capabilities"), [("tensorrt-rtx", ("8.9", "12.0")), ("tensorrt", ())])
def test_an_engine_is_built_for_this_machine_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, target: str, capabilities: tuple[str, ...]
) -> None:
    """Fails if the command drops engines of other GPUs, or names another GPU than this machine's for TensorRT."""
    arguments = ExportSettings(targets=(target,), capabilities=("8.9",)).arguments()
    texts = dict.fromkeys((*TEXTS, "attention", "plugin_version", "step_sha256", "decide", "decide_sha256"), "other")
    entry = EngineEntry(**texts | {"target": target}, weights_sha256=(), profiles={}, flags=FLAGS, build_seconds=1.0)
    manifest = replace(bundle.manifest, provenance={"arguments": arguments}, engines=(entry,))
    gpu = Gpu("a GPU", "12.0")
    with pytest.raises(EngineMismatch) as refused:
        require_match(entry, Bundle(bundle.directory, manifest), Machine("linux-x86_64", gpu, ""))
    line = str(refused.value).partition("rebuild it with: ")[2]
    model, out, read, _ = asked(monkeypatch, line)
    assert (model, out) == ("MODEL", bundle.directory) and line.endswith(" --force")
    assert (read.targets, read.capabilities) == ((target,), capabilities)


@pytest.mark.parametrize(
    "arguments", [None, 3, {"--a": 1}, [3, None, ["--a"], "rm", "-f", "--", "--out=x", "--Out", "-"]]
)
def test_words_that_no_export_writes_are_not_repeated(arguments: object) -> None:
    """Fails if arguments in an untrusted manifest give a traceback or become part of the command."""
    line = export_command({"source": 3, "arguments": arguments}, Path("out"), "--dtype=float32")
    assert line == "dpad export 3 --out out --dtype=float32"


def test_a_shell_reads_the_words_as_they_are() -> None:
    """Fails if a word of a manifest is not quoted for a shell, or can send control characters to a terminal."""
    line = export_command({"source": "$(a)", "arguments": ["--chat-template=b; c", "--a=\x1b[2J"]}, Path("d"))
    assert shlex.split(line) == ["dpad", "export", "$(a)", "--out", "d", "--chat-template=b; c", r"--a=\x1b[2J"]


OPTIONS = {
    "arguments": (["arguments"], ": dpad export "),
    "settings": (["settings"], ", with the options that its manifest has under provenance.settings: dpad export "),
    "neither": ([], ": dpad export "),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bundle_of_an_older_schema_is_exported_again(bundle: Bundle, case: str) -> None:
    """Fails if the error for an older schema lacks the export command, or does not say that options are left out."""
    kept, told = OPTIONS[case]

    def age(data: dict[str, Any]) -> None:
        data["schema_version"] = SCHEMA_VERSION - 1
        data["provenance"] = {name: data["provenance"][name] for name in ("source", *kept)}

    edit(bundle.directory, age)
    with pytest.raises(SchemaVersionError) as refused:
        dpad.load(bundle.directory)
    message = str(refused.value)
    assert "install the version of dpad that wrote it, or export the bundle again" + told in message
    ran = CliRunner().invoke(main, ["generate", str(bundle.directory), "w1"])
    assert (ran.exit_code, ran.stderr) == (1, f"dpad: SchemaVersionError: {message}\n")
    run("dpad export " + message.partition("dpad export ")[2])
    after = Bundle.open(bundle.directory).manifest
    assert (after == bundle.manifest) is (case == "arguments")


@pytest.mark.parametrize("provenance", [None, 3, [], {"arguments": {}, "settings": 3, "source": ["a"]}])
def test_an_older_manifest_may_hold_anything(bundle: Bundle, provenance: object) -> None:
    """Fails if an invalid field of an older manifest gives a traceback."""
    edit(bundle.directory, lambda data: data.update(schema_version=SCHEMA_VERSION - 1, provenance=provenance))
    with pytest.raises(SchemaVersionError, match="export the bundle again: dpad export .* --out "):
        Bundle.open(bundle.directory)


def test_an_older_bundle_in_a_hub_cache_is_exported_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    """Fails if the command would write into the hub's cache."""
    edit(bundle.directory, lambda data: data.update(schema_version=SCHEMA_VERSION - 1))
    with pytest.raises(SchemaVersionError, match="--out bundles/again "):
        Bundle.open(to_hub_cache(bundle.directory, tmp_path / "hub/models--a--tiny"))
