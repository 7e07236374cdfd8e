"""The command that makes a bundle again, for messages that send a user to `dpad export`.

    export_command(bundle.manifest, bundle.directory)                      # the same bundle
    export_command(bundle.manifest, bundle.directory, dtypes="float32")    # ... with a float32 step too

An export replaces the whole bundle. So the command repeats every setting of the export that made this one, as the
manifest's provenance has it, save what is the default anyway.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from dpad.runtime.bundle.manifest import Manifest
from dpad.runtime.bundle.precision import FULL
from dpad.runtime.show import escaped

_REMOTE = re.compile(r"https?:/.*")  # a path keeps one slash of two

# Name of the setting: its option of `dpad export`, and the default.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "targets": ("--target", ["onnx"]),
    "dtypes": ("--dtype", []),
    "weights": ("--weights", [FULL]),
    "group": ("--group", 32),
    "chat_template": ("--chat-template", None),
    "capabilities": ("--compute-capability", []),
    "max_batch": ("--max-batch", 4),
    "max_length": ("--max-length", None),
    "block_length": ("--block-length", 32),
    "window": ("--window", 256),
    "attention": ("--attention", "native"),
    "strip_weights": ("--strip-weights", False),
    "hardware_compatible": ("--hardware-compatible", False),
    "version_compatible": ("--version-compatible", False),
    "workspace": ("--workspace", None),
    "parity": ("--no-parity", True),
}


def export_command(manifest: Manifest, directory: Path, **added: str) -> str:
    """`dpad export` as it made the bundle in `directory`, quoted for a shell.

    Args:
        manifest: of the bundle.
        directory: where the bundle lies now.
        added: by the name of a setting that is a list, one more value for it.
    """
    settings = _settings(manifest.provenance)
    for name, value in added.items():
        kept = settings.get(name, [])
        settings[name] = kept if value in kept else [*kept, value]
    if "tensorrt" in settings.get("targets", []):
        settings.pop("capabilities", None)  # it builds for the GPU at hand, which is the default
    words = ["dpad", "export", str(manifest.provenance.get("source", "MODEL")), "--out", str(directory)]
    for name, (option, default) in _OPTIONS.items():
        value = settings.get(name, default)
        if isinstance(default, bool):
            words += [option] * (value is not default)
        elif value != default:
            words += [word for each in (value if isinstance(value, list) else [value]) for word in (option, str(each))]
    return shlex.join(words)


def _settings(provenance: dict[str, Any]) -> dict[str, Any]:
    """The settings of the export, the engines' flags among them; those of a type that no export writes are left out."""
    found = _table(provenance.get("settings"))
    found |= _table(found.get("flags"))
    lists = {name for name, (_, default) in _OPTIONS.items() if isinstance(default, list)}
    return {name: value for name, value in found.items() if isinstance(value, list) == (name in lists)}


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def first_export(directory: Path) -> str:
    """What lies at `directory`, where no bundle does, and the command that makes one of it."""
    name, model, out = escaped(str(directory)), "MODEL", directory
    if directory.is_file():
        return f"{name} is a file and not the directory of a bundle"
    if (directory / "config.json").is_file():
        what, model, out = "is a checkpoint and not a bundle", str(directory), Path("bundles", directory.resolve().name)
    elif directory.is_dir():
        what = "is not a bundle"
    elif _REMOTE.fullmatch(os.fspath(directory)):
        return f"{name} is not a directory; a bundle is opened from disk: fetch it first, with hf download"
    else:
        what = "is not a directory"
    return f"{name} {what}; make one with: {escaped(shlex.join(['dpad', 'export', model, '--out', str(out)]))}"
