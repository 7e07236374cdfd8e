"""The command that a message gives makes the whole bundle again, and adds what was missing."""

import json
import shlex
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source
from click.testing import CliRunner

import dpad
from dpad.cli import main
from dpad.commands import export as command
from dpad.export.settings import ExportSettings
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.export_command import export_command
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.engines.machine import Machine
from dpad.runtime.errors import AlteredFile, EngineUnavailable

LIMITS: dict[str, Any] = {"max_batch": 8, "max_length": 128, "block_length": 16, "window": 64}
EVERY = ExportSettings(
    targets=("onnx", "tensorrt-rtx"),
    dtypes=("float16", "float32"),
    capabilities=("8.9", "8.6"),
    attention="plugin",
    flags=BuildFlags(True, True, True, 64),
    weights=("full", "int4"),
    group=64,
    chat_template="rag",
    **LIMITS,
)


class Asked(Exception):
    """What `dpad export` was asked for."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export")
    return export(write_source(folder / "the model"), folder / "out", dtypes=("float16",), **LIMITS)


@pytest.fixture
def bundle(whole: Bundle, tmp_path: Path) -> Bundle:
    """A copy, in 16 bit, with limits of its own; the paths hold what a shell would take apart."""
    return Bundle(Path(shutil.copytree(whole.directory, tmp_path / "it's; out")), whole.manifest)


def run(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "dpad"
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output


def asked(monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[str, Path, ExportSettings, bool]:
    """Model, directory, settings and whether parity is wanted, as the command line reads `line`."""

    def export_bundle(model: str, out: Path, settings: ExportSettings, *more: Any, check: Any, force: bool) -> None:
        raise Asked(model, out, settings, check is not None)

    monkeypatch.setattr(command, "export_bundle", export_bundle)
    with pytest.raises(Asked) as told:
        command.command(shlex.split(line)[2:], standalone_mode=False)
    model, out, settings, parity = told.value.args
    return model, out, settings, parity


def test_the_step_that_was_missing_is_added(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if following the message removes the step that was there, or sets a limit back to its default."""
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
    """Fails if the way out of a damaged file is a bundle of other settings."""
    weights = bundle.path("float16/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(AlteredFile) as refused:
        Bundle.open(bundle.directory)
    run(str(refused.value).partition("make the bundle again: ")[2])
    assert Bundle.open(bundle.directory).manifest == bundle.manifest


@pytest.mark.parametrize(("settings", "parity"), [(EVERY, False), (EVERY, True), (ExportSettings(), True)])
def test_no_setting_is_lost(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, settings: ExportSettings, parity: bool
) -> None:
    """Fails if a setting is left out of the command, or a default of `dpad export` is another than it assumes."""
    same = [each.name for each in fields(settings) if getattr(EVERY, each.name) == getattr(ExportSettings(), each.name)]
    assert same == []
    provenance = bundle.manifest.provenance | {
        "settings": json.loads(json.dumps({**asdict(settings), "parity": parity}))
    }
    line = export_command(replace(bundle.manifest, provenance=provenance), bundle.directory)
    assert asked(monkeypatch, line) == (provenance["source"], bundle.directory, settings, parity)
    assert (line.count(" --") == 1) is (settings == ExportSettings())


@pytest.mark.parametrize(("target", "capabilities"), [("tensorrt-rtx", ("8.9", "12.0")), ("tensorrt", ())])
def test_an_engine_is_built_for_this_machine_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, target: str, capabilities: tuple[str, ...]
) -> None:
    """Fails if engines of other GPUs are lost, or TensorRT, which builds for the GPU at hand, is asked for another."""
    settings = {"targets": [target], "capabilities": ["8.9"]}
    manifest = replace(bundle.manifest, provenance={"settings": settings})
    model, _, read, _ = asked(monkeypatch, export_command(manifest, bundle.directory, capabilities="12.0"))
    assert (model, read.targets, read.capabilities) == ("MODEL", (target,), capabilities)


@pytest.mark.parametrize("settings", [None, 3, {"dtypes": 3, "flags": [], "max_batch": [2]}, {"dtypes": [[1]]}])
def test_settings_that_no_export_writes_do_no_harm(bundle: Bundle, settings: object) -> None:
    """Fails if a manifest from elsewhere turns the message into a traceback."""
    line = export_command(replace(bundle.manifest, provenance={"settings": settings}), Path("out"), dtypes="float32")
    assert line.startswith("dpad export MODEL --out out --dtype ") and line.endswith("float32")
