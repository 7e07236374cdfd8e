"""The command that makes a bundle again, for messages that send a user to `dpad export`.

    export_command(bundle.manifest.provenance, bundle.directory)                        # the same bundle
    export_command(bundle.manifest.provenance, bundle.directory, "--dtype=float32")     # ... with a float32 step too

An export replaces the whole bundle. So the command repeats the arguments of the export that made this one, which the
manifest keeps in its provenance.
"""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpad.runtime.show import escaped

_REMOTE = re.compile(r"https?:/.*")  # a path keeps one slash of two
_ARGUMENT = re.compile(r"--(?!out\b)[a-z-]+(=.*)?", re.DOTALL)  # as exports keep them; a manifest may hold other words


def export_command(provenance: Mapping[str, Any], directory: Path, *added: str) -> str:
    """`dpad export` as it made the bundle in `directory`, quoted for a shell.

    Args:
        provenance: that of the manifest.
        directory: where the bundle lies now.
        added: arguments beside those of then, such as `--dtype=float32`.
    """
    kept = provenance.get("arguments")
    words = [str(word) for word in kept if _ARGUMENT.fullmatch(str(word))] if isinstance(kept, list) else []
    words += [word for word in added if word not in words]
    source = str(provenance.get("source", "MODEL"))
    return escaped(shlex.join(["dpad", "export", source, "--out", str(directory), *words]))


def export_again(data: Mapping[str, Any], directory: Path) -> str:
    """The same, behind "export the bundle again", for a manifest of which no field was checked."""
    found = data.get("provenance")
    provenance = found if isinstance(found, dict) else {}
    lost = "settings" in provenance and "arguments" not in provenance
    options = ", with the options that its manifest has under provenance.settings" if lost else ""
    return f"{options}: {export_command(provenance, directory)}"


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
