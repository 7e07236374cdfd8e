"""`Bundle`: a directory that holds a model ready to run, checked before anything is opened.

    bundle = Bundle.open(Path("bundles/tiny"))       # raises BundleError, naming the file
    bundle.path("float32/step.onnx")

A bundle is a manifest, a traced step a dtype with its weights, compiled engines, the
tokenizer and the parity report. Every file is listed with size and SHA-256. Because ONNX
external data may name any file beside the model, a file that is not listed is refused too.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dpad.runtime import manifest as manifests
from dpad.runtime.errors import (
    AlteredFile,
    BundleError,
    ManifestError,
    MissingFile,
    OutOfTreeFile,
    SymlinkedFile,
    TruncatedFile,
    UnlistedFile,
)
from dpad.runtime.export_command import export_command, first_export
from dpad.runtime.files import open_file, read_json
from dpad.runtime.manifest import FileEntry, Manifest
from dpad.runtime.show import shown

_CHUNK = 4 << 20
_MANIFEST_LIMIT = 64 << 20

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: `manifest` and the `directory` it describes."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, hashes: bool = True, advance: Advance | None = None
    ) -> "Bundle":
        """Check the directory against its manifest.

        Args:
            directory: the bundle.
            hashes: also compare SHA-256 (reads every byte); False still compares sizes.
            advance: told the number of bytes hashed, for a progress bar.

        Raises:
            BundleError: one of its subclasses, naming the file and the way out.
        """
        try:
            directory = Path(directory)
        except Exception:  # a path-like object runs code of its own
            raise BundleError(f"a bundle is opened by its path, and {shown(directory)} is none") from None
        try:
            if not directory.is_dir():
                raise MissingFile(first_export(directory))
            bundle = cls(directory, read_manifest(directory))
            bundle._check_files(hashes, advance)
        except OSError as error:
            raise BundleError(f"{directory} cannot be read: {error}") from error
        return bundle

    def path(self, name: str) -> Path:
        """Absolute path of a listed file."""
        if name not in self.manifest.files:
            raise UnlistedFile(f"{name} is not listed in {self.directory / manifests.FILE_NAME}; {self._way_out()}")
        return self.directory.resolve() / name

    def _check_files(self, hashes: bool, advance: Advance | None) -> None:
        for name in sorted(self.manifest.references() - self.manifest.files.keys()):
            raise UnlistedFile(f"the manifest refers to {name} but does not list it; {self._way_out()}")
        for name in self.manifest.files:
            _check_inside(name, self._way_out())
        for name in sorted(_walk(self.directory, self._way_out()) - self.manifest.files.keys()):
            raise UnlistedFile(f"{self.directory / name} is not listed in the manifest; move it out of the bundle")
        for name, entry in self.manifest.files.items():
            self._check_file(name, entry, hashes, advance)

    def _check_file(self, name: str, entry: FileEntry, hashes: bool, advance: Advance | None) -> None:
        path = self.directory / name
        if not path.is_file():
            raise MissingFile(f"{path} is missing; {self._way_out()}")
        size = path.stat().st_size
        if size != entry.size:
            raise TruncatedFile(f"{path} has {size} bytes, the manifest says {entry.size}; {self._way_out()}")
        if hashes and sha256(path, advance) != entry.sha256:
            raise AlteredFile(f"{path} is not the file that was exported (SHA-256 differs); {self._way_out()}")

    def _way_out(self) -> str:
        return f"make the bundle again: {export_command(self.manifest, self.directory)}"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle, checked field by field; no other file is looked at."""
    path = directory / manifests.FILE_NAME
    if path.is_symlink():
        raise SymlinkedFile(f"{path} is a symbolic link; a bundle holds plain files only")
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ManifestError(f"{path} is over {_MANIFEST_LIMIT} bytes; this is no manifest")
        data = read_json(path)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing: {first_export(directory)}") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read as JSON: {error}; export the bundle again") from None
    try:
        return Manifest.from_json(data)
    except ManifestError as error:
        raise type(error)(f"{path}: {error}") from None


def sha256(path: Path, advance: Advance | None = None) -> str:
    """Hex digest of a file, read in pieces; `advance` is told their sizes."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            if advance:
                advance(len(piece))
    return digest.hexdigest()


def _check_inside(name: str, way_out: str) -> None:
    """Refuse absolute paths, `..`, backslashes and other spellings that could leave the bundle."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise OutOfTreeFile(f"the manifest lists {name!r}, which leaves the bundle; {way_out}")
    if str(path) != name:
        raise OutOfTreeFile(f"the manifest lists {name!r}, which is not a plain relative path; {way_out}")


def _walk(directory: Path, way_out: str) -> set[str]:
    """Relative names of all files but the manifest; refuses links and special files."""
    names: set[str] = set()
    for parent, folders, files in os.walk(directory, onerror=_raise):
        for entry in (*folders, *files):
            path = Path(parent) / entry
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise SymlinkedFile(f"{path} is a symbolic link; a bundle holds plain files only; {way_out}")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UnlistedFile(f"{path} is not a plain file; move it out of the bundle")
        names.update((Path(parent) / file).relative_to(directory).as_posix() for file in files)
    return names - {manifests.FILE_NAME}


def _raise(error: OSError) -> None:
    raise error
