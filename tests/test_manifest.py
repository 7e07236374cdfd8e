"""An edited manifest is refused because of its digest; with a new digest it gives a typed error or runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, export, write_source
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dpad
from dpad.cli import main
from dpad.export.parity.compare import compare_bundle
from dpad.export.progress import Progress
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FileEntry, Manifest, digest

TEXTS = ("file", "onnx", "decide", "target", "variant", "library", "library_version", "compute_capability", "platform")
ENGINE: dict[str, Any] = {
    **dict.fromkeys((*TEXTS, "attention", "plugin_version", "step_sha256", "decide_sha256"), "float32/step.onnx"),
    "weights_sha256": [],
    "profiles": {},
    "flags": {
        **dict.fromkeys(("strip_weights", "hardware_compatible", "version_compatible", "lean"), False),
        "workspace": None,
    },
    "build_seconds": 1.5,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a float32 and a W8A8 step."""
    folder = tmp_path_factory.mktemp("manifest")
    return export(write_source(folder / "source"), folder / "bundle", dtypes=("float32", "w8a8")).directory


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def nested(depth: int) -> Any:
    """Lists nested to `depth`."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def swap_steps(data: dict[str, Any]) -> None:
    data["steps"] = {"float32": data["steps"]["w8a8"], "w8a8": data["steps"]["float32"]}


def rename_step(data: dict[str, Any]) -> None:
    data["steps"]["float32-weights-int4"] = data["steps"].pop("float32")


EDITED = {
    "swapped steps": swap_steps,
    "renamed step": rename_step,
    "removed step": lambda data: data["steps"].pop("float32"),
    "added engine": lambda data: data["engines"].append(ENGINE),
    "other tokenizer": lambda data: data.update(tokenizer=["float32/step.onnx"]),
    "unknown section": lambda data: data.update(more=1),
}


@pytest.mark.parametrize("case", EDITED)
def test_an_edited_manifest_is_refused(bundle: Path, case: str) -> None:
    """Fails if a changed section is accepted, such as steps that are exchanged."""
    edit(bundle, EDITED[case], sign=False)
    with pytest.raises(errors.ManifestError, match="digest differs"):
        dpad.load(bundle)


def test_a_file_that_is_edited_with_its_entry_is_refused(bundle: Path) -> None:
    """Fails if a changed file is accepted after its hash and size in the manifest were changed too."""
    (bundle / "tokenizer/chat_template.jinja").write_text("w5")
    entry = FileEntry(2, "0" * 64)
    edit(bundle, lambda data: data["files"].update({"tokenizer/chat_template.jinja": vars(entry)}), sign=False)
    with pytest.raises(errors.ManifestError, match="digest differs"):
        dpad.load(bundle)


def test_a_manifest_is_written_as_it_is_read(whole: Path) -> None:
    """Fails if an exported manifest is refused, or its digest does not cover everything written."""
    read = json.loads((whole / "manifest.json").read_text())
    assert Manifest.from_json(read).to_json() == Manifest.from_json(read).to_json() | {"digest": digest(read)}
    assert all(digest(read | {name: "other"}) != digest(read) for name in read if name != "digest")


UNREADABLE = {
    "half a character": (lambda data: data.update(name="\ud800"), "surrogates not allowed"),
    "half a character in a key": (lambda data: data["presets"].update({"\ud800": {}}), "surrogates not allowed"),
    "deep": (lambda data: data["model_config"].update(x=nested(600)), "nested deeper than 64"),
    "deepest": (lambda data: data["model_config"].update(x=nested(900)), "nested deeper than 64"),
    "deep profiles": (lambda data: data["engines"].append({**ENGINE, "profiles": {"a": nested(600)}}), "nested"),
    "endless build": (lambda data: data["engines"].append({**ENGINE, "build_seconds": 10**400}), "build_seconds"),
    "versions": (lambda data: data["provenance"].update(versions=[1]), "provenance.versions"),
    "settings": (lambda data: data["provenance"].update(settings=None), "provenance.settings"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_new_digest_does_not_make_a_manifest_readable(bundle: Path, case: str) -> None:
    """Fails if a value that is valid JSON but invalid here gives a traceback."""
    change, said = UNREADABLE[case]
    edit(bundle, change)
    with pytest.raises(errors.ManifestError, match=said):
        dpad.load(bundle)


def lists(name: str, sha256: str = "0" * 64) -> Callable[[dict[str, Any]], None]:
    """A change that lists one more file, or another hash."""
    return lambda data: data["files"].update({name: {"size": 1, "sha256": sha256}})


NAMES = {
    **{
        repr(name): (lists(name), "not a plain relative path|leaves the bundle")
        for name in ("", ".", "a/", "a//b", "./a")
    },
    **{repr(name): (lists(name), "not a plain relative path") for name in ("a\x1b[31m", "a\nb", "\u202ea", "\x7f")},
    **{name: (lists(name), "not a plain relative path") for name in (".git/x", ".cache/huggingface/x", ".git")},
    "long": (lists("a" * 5000), "too long"),
    "the same but for case": (lists("float32/STEP.onnx"), "case-insensitive file system"),
    "hash that is a path": (lists("float32/step.onnx", "../../x"), "'../../x' for the SHA-256"),
    "too much": (lambda data: data["model_config"].update(x="x" * (4 << 20)), "over 4194304 bytes"),
}


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("case", NAMES)
def test_names_are_plain_and_one_file_each(bundle: Path, case: str, hashes: bool) -> None:
    """Fails if a listed name has control characters, equals another on other systems, or is reached through a link."""
    (bundle / ".git").mkdir()
    (bundle / ".git/x").symlink_to("/etc/hostname")
    change, said = NAMES[case]
    edit(bundle, change)
    with pytest.raises(errors.BundleError, match=said):
        dpad.load(bundle, verify_hashes=hashes)


@pytest.mark.parametrize("named", ["tokenizer/tokenizer.json", "float32/model.safetensors"])
def test_a_report_that_is_none_is_refused(bundle: Path, named: str) -> None:
    """Fails if `dpad inspect` gives a traceback when the manifest names another file as the parity report."""
    edit(bundle, lambda data: data.update(parity=named))
    ran = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert ran.exit_code == 1 and "is not a parity report" in ran.stderr and len(ran.stderr) < 600


@pytest.mark.parametrize("weights", ["tokenizer/tokenizer.json", "w8a8/step.onnx.data"])
def test_torch_reads_weights_only(bundle: Path, weights: str) -> None:
    """Fails if a weights file that holds no weights gives an error of the library."""
    edit(bundle, lambda data: data["steps"]["float32"].update(weights=[weights]))
    with pytest.raises(errors.CheckpointError, match="not a complete safetensors file"):
        dpad.load(bundle, engine="eager")


def test_without_weights_for_torch_it_says_so(bundle: Path) -> None:
    """Fails if eager torch or parity gives a traceback for a bundle with only a W8A8 step."""
    edit(bundle, lambda data: data["steps"].pop("float32"))
    for run in (lambda: dpad.load(bundle, engine="eager"), lambda: compare_bundle(Bundle.open(bundle), Progress())):
        with pytest.raises(errors.EngineUnavailable, match="no step float32.*--dtype float32"):
            run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(found for key, value in items for found in _paths(value, (*path, key)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_manifest_gives_anything_but_a_typed_error(whole: Path, bundle: Path, data: st.DataObject) -> None:
    """Fails if any value replaced by any JSON gives a traceback, with the old or a new digest."""
    manifest = json.loads((whole / "manifest.json").read_text())
    manifest["engines"].append(json.loads(json.dumps(ENGINE)))
    path = data.draw(st.sampled_from(_paths(manifest)))
    value = data.draw(JSON)
    if path:
        parent = manifest
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
    else:
        manifest = value
    if data.draw(st.booleans()) and isinstance(manifest, dict):
        manifest["digest"] = digest(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    for engine in ("auto", "eager"):
        try:
            dpad.load(bundle, engine=engine).close()
        except errors.DpadError as error:
            assert str(error)
    for form in ((), ("--json",)):
        ran = CliRunner().invoke(main, ["inspect", str(bundle), *form])
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
