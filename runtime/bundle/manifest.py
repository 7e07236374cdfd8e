"""`Manifest`: the JSON document that describes a bundle, field by field.

    manifest = Manifest.from_json(read_json(path))
    manifest.files["float32/step.onnx"].sha256

A manifest is untrusted input: reading checks every field and raises a `ManifestError` that names it.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from dpad.runtime.bundle.variant import DYNAMIC, FULL, PACKED, ROWS, variant_name
from dpad.runtime.checks import is_number
from dpad.runtime.contract import StepContract
from dpad.runtime.errors import ManifestError, SchemaVersionError
from dpad.runtime.show import shown

SCHEMA_VERSION = 2
FILE_NAME = "manifest.json"
_STEPS = {variant_name(rows, weights) for rows in ROWS for weights in (FULL, *PACKED)} | {DYNAMIC}
RANDOM_WEIGHTS = "dpad_random_seed"  # key of the model's config that `dpad synth` sets

T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class StepEntry:
    """One traced step: paths of its ONNX file and of the weight files that the ONNX file refers to."""

    onnx: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class BuildFlags:
    """The build options of an engine.

    Attributes:
        strip_weights: the plan holds no weights; they are read from the step's weight files when it is opened.
        hardware_compatible: the plan runs on every GPU from Ampere (8.0) on.
        version_compatible: the plan runs with later versions of the library, within its major version.
        lean: a version-compatible plan that does not embed the lean runtime; `tensorrt_lean` must be installed.
        workspace: limit of the builder's workspace in MiB; None is the library's default.
    """

    strip_weights: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    lean: bool = False
    workspace: int | None = None


@dataclass(frozen=True)
class EngineEntry:
    """One compiled engine, and everything that determines whether it may be opened.

    The fields of `key` identify an engine: two engines with equal keys compute the same function on the same
    machines. `variant` and `onnx` name the step that it was compiled from. `decide` is the plan of the program
    `decide`. `library` is the Python module that opens the engine, `library_version` the version that built it.
    `plugin_version` is empty if the engine contains no plugin.
    """

    file: str
    onnx: str
    decide: str
    target: str
    variant: str
    library: str
    library_version: str
    compute_capability: str
    platform: str
    attention: str
    plugin_version: str
    step_sha256: str
    decide_sha256: str
    weights_sha256: tuple[str, ...]
    profiles: dict[str, Any]
    flags: BuildFlags
    build_seconds: float

    def key(self) -> dict[str, Any]:
        """The fields that can change the result: all but file names and the build's duration."""
        return {k: v for k, v in asdict(self).items() if k not in ("file", "onnx", "decide", "build_seconds")}


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle holds. Paths are relative, with forward slashes.

    `decide` is the ONNX file of the program `decide`, one for all steps.
    """

    name: str
    contract: StepContract
    architecture: str
    model_config: dict[str, Any]
    steps: dict[str, StepEntry]
    decide: str
    engines: tuple[EngineEntry, ...]
    tokenizer: tuple[str, ...]
    presets: dict[str, Any]
    provenance: dict[str, Any]
    parity: str | None
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether `dpad synth` wrote the weights, so that all generated text is noise."""
        return RANDOM_WEIGHTS in self.model_config

    def references(self) -> set[str]:
        """Every path that a field other than `files` names."""
        names = {path for step in self.steps.values() for path in (step.onnx, *step.weights)}
        names |= {path for engine in self.engines for path in (engine.file, engine.onnx, engine.decide)}
        names |= {self.decide, *self.tokenizer}
        return names | ({self.parity} if self.parity else set())

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, the schema version first, the digest last."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return data | {"digest": digest(data)}

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Read and check JSON values; raises `SchemaVersionError`, or a `ManifestError` that names the field."""
        data = _typed(data, dict, "the manifest")
        version = data.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise SchemaVersionError(
                f"schema_version {shown(version)} is not {SCHEMA_VERSION}, the one that this runtime reads; "
                "install the version of dpad that wrote it, or export the bundle again"
            )
        parity = data.get("parity")
        manifest = cls(
            name=_take(data, "name", str),
            contract=StepContract.from_json(_take(data, "contract", dict)),
            architecture=_take(data, "architecture", str),
            model_config=_take(data, "model_config", dict),
            steps={k: _step(v, f"steps.{k}") for k, v in _take(data, "steps", dict).items()},
            decide=_take(data, "decide", str),
            engines=tuple(_engine(v, f"engines[{i}]") for i, v in enumerate(_take(data, "engines", list))),
            tokenizer=_strings(data, "tokenizer"),
            presets=_take(data, "presets", dict),
            provenance=_provenance(_take(data, "provenance", dict)),
            parity=None if parity is None else _typed(parity, str, "parity"),
            files={k: _file(v, f"files.{k}") for k, v in _take(data, "files", dict).items()},
        )
        if not manifest.steps or (unknown := sorted(manifest.steps.keys() - _STEPS)):
            what = f"{unknown[0]!r}, which is not a known step" if manifest.steps else "no step"
            raise ManifestError(f"steps holds {what}; export the bundle again")
        if _take(data, "digest", str) != digest(data):
            raise ManifestError(
                "the digest differs: the manifest was edited, or written by an earlier version of dpad; "
                "export the bundle again"
            )
        return manifest


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 over a manifest without its digest; any edit, such as another mask id, could change the generated text.

    It detects edits and damage. It is not a signature: anybody who edits a manifest can write a new digest.
    """
    told = json.dumps({k: v for k, v in data.items() if k != "digest"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()


def _typed(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ManifestError(f"{name} is not a {kind.__name__}; export the bundle again")
    return value


def _take(data: Mapping[str, Any], key: str, kind: type[T], where: str = "") -> T:
    if key not in data:
        raise ManifestError(f"{where}{key} is missing; export the bundle again")
    return _typed(data[key], kind, where + key)


def _strings(data: Mapping[str, Any], key: str, where: str = "") -> tuple[str, ...]:
    values = _take(data, key, list, where)
    return tuple(_typed(value, str, f"{where}{key}[{i}]") for i, value in enumerate(values))


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    value: Any = data.get(key)
    if not (is_number(value) and 0 <= value <= sys.float_info.max):  # JSON may hold 10**400
        raise ManifestError(f"{where}{key} is not a number; export the bundle again")
    return float(value)


def _provenance(data: dict[str, Any]) -> dict[str, Any]:
    for name in ("settings", "versions"):
        _typed(data.get(name, {}), dict, f"provenance.{name}")
    return data


def _file(data: Any, where: str) -> FileEntry:
    data = _typed(data, dict, where)
    return FileEntry(_take(data, "size", int, f"{where}."), _take(data, "sha256", str, f"{where}."))


def _step(data: Any, where: str) -> StepEntry:
    data = _typed(data, dict, where)
    entry = StepEntry(_take(data, "onnx", str, f"{where}."), _strings(data, "weights", f"{where}."))
    if not entry.weights:
        raise ManifestError(f"{where}.weights is empty; export the bundle again")
    return entry


def _engine(data: Any, where: str) -> EngineEntry:
    data, where = _typed(data, dict, where), f"{where}."
    return EngineEntry(
        **{field.name: _take(data, field.name, str, where) for field in fields(EngineEntry) if field.type is str},
        weights_sha256=_strings(data, "weights_sha256", where),
        profiles=_take(data, "profiles", dict, where),
        flags=_flags(_take(data, "flags", dict, where), f"{where}flags."),
        build_seconds=_number(data, "build_seconds", where),
    )


def _flags(data: dict[str, Any], where: str) -> BuildFlags:
    names = [field.name for field in fields(BuildFlags)]
    if unknown := sorted(data.keys() - set(names)):
        raise ManifestError(f"{where}{unknown[0]} is not known; export the bundle again")
    switches = {name: _take(data, name, bool, where) for name in names if name != "workspace"}
    if "workspace" not in data:
        raise ManifestError(f"{where}workspace is missing; export the bundle again")
    workspace = data["workspace"]
    return BuildFlags(**switches, workspace=None if workspace is None else _typed(workspace, int, f"{where}workspace"))
