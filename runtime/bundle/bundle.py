"""`Bundle`: a directory that holds a model ready to run. It is checked before any of its files is used.

    bundle = Bundle.open(Path("bundles/tiny"))       # raises BundleError, naming the file
    bundle.path("float32/step.onnx")

A bundle holds a manifest, a traced step and its weights for each dtype, compiled engines, the tokenizer and the parity
report. The manifest lists every file with its size and SHA-256. ONNX external data may name any file beside the model,
so a file that is not listed is refused too, except files that hubs, git and file managers add (`companions`). Links
are refused, except in a hub's cache, where every file is a link to a blob of the same repository.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dpad.runtime.bundle import manifest as manifests
from dpad.runtime.bundle import transfer
from dpad.runtime.bundle.companions import hides, is_companion
from dpad.runtime.bundle.export_command import export_again, export_command, first_export
from dpad.runtime.bundle.files import read_json
from dpad.runtime.bundle.hashes import Advance, Hashing
from dpad.runtime.bundle.manifest import FileEntry, Manifest
from dpad.runtime.bundle.tree import walk
from dpad.runtime.errors import (
    AlteredFile,
    BundleError,
    ManifestError,
    MissingFile,
    OutOfTreeFile,
    SchemaVersionError,
    SymlinkedFile,
    TruncatedFile,
    UnlistedFile,
)
from dpad.runtime.show import escaped, shown

_SHA256 = re.compile("[0-9a-f]{64}")
_MANIFEST_LIMIT = 4 << 20  # bytes: a manifest has a thousandth of that; reading takes many times the size in memory


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
            advance: called with the number of bytes hashed since its last call, for a progress bar.

        Raises:
            BundleError: one of its subclasses; the message names the file and says what to do.
        """
        try:
            directory = Path(directory)
        except Exception:  # a path-like object runs code of its own
            raise BundleError(f"a bundle is opened by its path; {shown(directory)} is not a path") from None
        try:
            if not directory.is_dir():
                raise MissingFile(_no_bundle(directory))
            bundle = cls(directory, read_manifest(directory))
            bundle._check_files(hashes, advance)
        except OSError as error:
            raise BundleError(f"{directory} cannot be read: {error}") from error
        return bundle

    @property
    def is_linked(self) -> bool:
        """Whether the bundle lies in a hub's cache, where all files are links."""
        return (self.directory / manifests.FILE_NAME).is_symlink()

    def path(self, name: str) -> Path:
        """Absolute path of a listed file."""
        if name not in self.manifest.files:
            raise UnlistedFile(f"{name} is not listed in {self.directory / manifests.FILE_NAME}; {self._way_out()}")
        return self.directory.resolve() / name

    def _check_files(self, hashes: bool, advance: Advance | None) -> None:
        for name in sorted(self.manifest.references() - self.manifest.files.keys()):
            raise UnlistedFile(f"the manifest refers to {name} but does not list it; {self._way_out()}")
        _check_names(self.manifest.files, self._way_out())
        self._check_tree()
        files = {self.directory / name: entry for name, entry in self.manifest.files.items()}
        with Hashing({path: entry.size for path, entry in files.items()} if hashes else {}, advance) as hashing:
            for path, entry in files.items():
                self._check_file(path, entry)
                if hashes and hashing.digest(path) != entry.sha256:
                    raise AlteredFile(f"{path} is not the file that was exported (SHA-256 differs); {self._way_out()}")

    def _check_tree(self) -> None:
        """Refuse files that are not listed, special files, and links that lead out of a hub's cache."""
        plain: list[str] = []
        linked: list[str] = []
        for name, mode in walk(self.directory, enters=lambda name: not hides(name)):
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                raise UnlistedFile(f"{self.directory / name} is not a plain file; move it out of the bundle")
            if stat.S_ISLNK(mode):
                _check_link(self.directory, name, self.manifest.name)
            if name in self.manifest.files:
                (linked if stat.S_ISLNK(mode) else plain).append(name)
            elif name != manifests.FILE_NAME and not is_companion(name):
                raise UnlistedFile(self._unlisted(name))
        if linked and plain:
            raise SymlinkedFile(
                f"{self.directory / linked[0]} is a link into a hub's cache and {plain[0]} is a file: engines need all "
                f"links or all files; copy the bundle: {transfer.copy_command(self.directory, self.manifest.name)}"
            )

    def _unlisted(self, name: str) -> str:
        path, listed = self.directory / name, self.manifest.files
        if whole := transfer.partial_of(name, listed):
            return f"{path} is left from an interrupted copy of {whole}: remove it, and copy or download {whole} again"
        missing = (other for other in listed if not (self.directory / other).exists())
        if other := transfer.renamed(name, missing):
            return f"{path} was renamed when it was copied: give it its name in the manifest again, {other}"
        return f"{path} is not listed in the manifest; move it out of the bundle"

    def _check_file(self, path: Path, entry: FileEntry) -> None:
        if not path.is_file():
            raise MissingFile(f"{path} is missing; {self._way_out()}")
        size = path.stat().st_size
        if size != entry.size:
            found = f"{path} has {size} bytes, the manifest says {entry.size}; {self._way_out()}"
            raise TruncatedFile(transfer.told(path, entry.sha256) or found)

    def _way_out(self) -> str:
        if transfer.is_unfinished(self.directory):
            return "the download was not finished: run the same hf download again"
        if self.is_linked:
            return "fetch it again into the hub's cache: run the same hf download with --force-download"
        again = export_command(self.manifest.provenance, self.directory)
        return f"copy it again from an intact bundle, or make the bundle again: {again}"


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a bundle and check it field by field; no other file is read."""
    path = directory / manifests.FILE_NAME
    try:
        if path.is_symlink():
            _check_link(directory, manifests.FILE_NAME, "copy")
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ManifestError(f"{path} is over {_MANIFEST_LIMIT} bytes, so it is not a bundle's manifest")
        data = read_json(path)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing: {_no_bundle(directory)}") from None
    except (OSError, ValueError) as error:
        found = f"{path} cannot be read as JSON: {error}; export the bundle again"
        raise ManifestError(transfer.told(path) or found) from None
    try:
        return Manifest.from_json(data)
    except SchemaVersionError as error:
        out = Path("bundles/again") if path.is_symlink() else directory  # an export cannot go into a hub's cache
        raise SchemaVersionError(f"{path}: {error}{export_again(data, out)}") from None
    except ManifestError as error:
        raise type(error)(f"{path}: {error}") from None


def _check_names(files: Mapping[str, FileEntry], way_out: str) -> None:
    """Refuse names that leave the bundle, and names that differ only in upper and lower case."""
    spelled: dict[str, str] = {}
    for name, entry in files.items():
        _check_inside(name, way_out)
        if (other := spelled.setdefault(name.casefold(), name)) != name:
            raise ManifestError(
                f"the manifest lists {other} and {name}, one file on a case-insensitive file system; {way_out}"
            )
        if not _SHA256.fullmatch(entry.sha256):
            raise ManifestError(f"the manifest has {entry.sha256[:80]!r} for the SHA-256 of {name}; {way_out}")


def _check_inside(name: str, way_out: str) -> None:
    """Refuse absolute paths, `..`, backslashes and other spellings that could leave the bundle."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise OutOfTreeFile(f"the manifest lists {name!r}, which leaves the bundle; {way_out}")
    if str(path) != name or not name.isprintable() or hides(name):
        raise OutOfTreeFile(f"the manifest lists {name!r}, which is not a plain relative path; {way_out}")


def _check_link(directory: Path, name: str, copy: str) -> None:
    """Refuse a link, unless it leads to a blob of the same repository in a hub's cache."""
    path = directory / name
    if transfer.blob_of(directory, path) is not None:
        return
    if transfer.lacks_blob(directory, path):
        raise MissingFile(f"{path} links to a file that the hub's cache lacks: run the same hf download again")
    leads = "leads to" if path.exists() else "leads to a file that does not exist:"
    raise SymlinkedFile(
        f"{path} is a symbolic link; it {leads} {os.readlink(path)}; a bundle holds plain files, or only links in a "
        f"hub's cache; on the machine that has the files, copy them with the bundle: "
        f"{transfer.copy_command(directory, copy)}"
    )


def _no_bundle(directory: Path) -> str:
    """The error message for a path that is not a bundle."""
    if where := transfer.nearby(directory):
        return f"{escaped(str(directory))} is not the directory of a bundle{where}"
    return first_export(directory)
