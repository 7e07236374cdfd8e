"""The provenance of a bundle, and the key that tells whether it is up to date.

    provenance = describe(source, checkpoint, settings, progress)
    provenance["key"]      # equal keys: exporting again would give the same bundle

The key covers the checkpoint, the settings, the libraries and the code of this package.
"""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from dpad.export.hub import Source
from dpad.export.progress import Progress
from dpad.export.tokenizer import place as tokenizer
from dpad.export.writing.digest import digests
from dpad.models import presets
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.engines.machine import library_version
from dpad.runtime.errors import CheckpointError

_LIBRARIES = ("dpad", "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "safetensors", "tokenizers")
_BUILDERS = ("tensorrt-rtx", "tensorrt")


def describe(source: Source, checkpoint: Checkpoint, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The source, hashes of its files, library versions and settings, with a key over all of them.

    Raises `CheckpointError` for a file that cannot be read, for instance because it is a directory.
    """
    files = [checkpoint.directory / "config.json", *checkpoint.shards]
    files += tokenizer.sources(checkpoint.directory)
    files += [path for name in presets.SOURCES if (path := checkpoint.directory / name).exists()]
    try:
        with progress.task("hash checkpoint", sum(path.stat().st_size for path in files)) as advance:
            names = [path.relative_to(checkpoint.directory).as_posix() for path in files]
            hashes = dict(zip(names, digests(files, advance)))
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}; download it again") from error
    described = {
        "source": source.label,
        "source_files": hashes,
        "settings": json.loads(json.dumps(settings)),  # as the manifest will read it back
        "versions": {name: version for name in (*_LIBRARIES, *_BUILDERS) if (version := library_version(name))},
        "python": platform.python_version(),
        "code": code_hash(),
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return {**described, "key": key}


def code_hash() -> str:
    """One hash over the source files that determine the contents of an export."""
    import dpad.export
    import dpad.models
    import dpad.plugins
    import dpad.runtime

    sources = hashlib.sha256()
    for package in (dpad.export, dpad.models, dpad.plugins, dpad.runtime):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                sources.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return sources.hexdigest()
