"""The command that makes a bundle again, for messages that send a user to `dpad export`.

    export_command(bundle.manifest.provenance, bundle.directory)                        # the same bundle
    export_command(bundle.manifest.provenance, bundle.directory, "--dtype=float32")     # ... with a float32 step too

An export replaces the whole bundle. So the command repeats the arguments of the export that made the bundle; the
manifest keeps them in its provenance.
"""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpad.runtime.show import escaped

_REMOTE = re.compile(r"https?:/.*")  # `Path` turns the two slashes of an address into one
_ARGUMENT = re.compile(r"--(?!out\b)[a-z-]+(=.*)?", re.DOTALL)  # any other word of an edited manifest is left out


def export_command(provenance: Mapping[str, Any], directory: Path, *added: str) -> str:
    """The `dpad export` command that makes the bundle in `directory` again, quoted for a shell.

    Args:
        provenance: the manifest's provenance, with the arguments of the first export.
        directory: where the bundle lies now.
        added: further arguments, such as `--dtype=float32`.
    """
    kept = provenance.get("arguments")
    words = [str(word) for word in kept if _ARGUMENT.fullmatch(str(word))] if isinstance(kept, list) else []
    words += [word for word in added if word not in words]
    source = str(provenance.get("source", "MODEL"))
    return escaped(shlex.join(["dpad", "export", source, "--out", str(directory), *words]))


def export_again(data: Mapping[str, Any], directory: Path) -> str:
    """The end of a message "export the bundle again", with the command, from a manifest whose fields are unchecked."""
    found = data.get("provenance")
    provenance = found if isinstance(found, dict) else {}
    lost = "settings" in provenance and "arguments" not in provenance
    options = ", with the options that its manifest has under provenance.settings" if lost else ""
    return f"{options}: {export_command(provenance, directory)}"


def first_export(directory: Path) -> str:
    """The message for a path that is not a bundle: what it is instead, and the command that makes a bundle."""
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
