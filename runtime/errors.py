"""Every error that this package raises on purpose, as one tree.

    DpadError
    ├── InvalidRequest        the caller's prompt or options cannot be served (also a ValueError)
    ├── QueueFull             too many requests wait already
    ├── AttentionError        inputs that the attention op cannot take (also a ValueError)
    ├── KernelCompileError    a kernel cannot be compiled into what a plain launch runs
    ├── CheckpointError       a model directory cannot be read as one of the families
    ├── ExportError           tracing, converting or writing a bundle failed
    │   └── EngineBuildError  the engine builder failed; the message ends with the builder's own errors
    ├── BundleError           a bundle on disk is not what its manifest says
    │   ├── ManifestError     manifest.json is missing, unreadable or of the wrong shape
    │   │   └── SchemaVersionError  the manifest has another schema version
    │   ├── MissingFile       a listed file is not there
    │   ├── TruncatedFile     a listed file has another size
    │   ├── AlteredFile       a listed file has another SHA-256
    │   ├── UnlistedFile      a file, or a reference to one, that the manifest does not list
    │   ├── OutOfTreeFile     a path that leaves the bundle
    │   └── SymlinkedFile     a link where a plain file must be
    ├── EngineError           an engine failed to open or to run
    │   ├── EngineMismatch    the engine was built for another machine or another bundle
    │   ├── EngineUnavailable this machine cannot run the engine
    │   └── ModelClosed       the model was closed, before the call or while it ran
    ├── ParityError           an engine disagrees with PyTorch
    ├── ReplayError           a receipt belongs to another bundle, or its passes decide other tokens here
    ├── MissingExtra          a command needs a package that one of this project's extras installs
    └── EvaluationError       a task cannot be run with these settings; subclasses are in evaluation/errors.py

Each message names the cause and the way out. All are raised by explicit checks, so they hold under `python -O`.
"""

from dpad.plugins.errors import AttentionError as AttentionError
from dpad.plugins.errors import DpadError as DpadError
from dpad.plugins.errors import KernelCompileError as KernelCompileError


class InvalidRequest(DpadError, ValueError):
    """A prompt or an option that cannot be served; names the value and the limit."""


class QueueFull(DpadError):
    """More requests wait than the queue holds; the same request can be served later."""


class CheckpointError(DpadError):
    """A checkpoint directory that cannot be read; names the file or the key."""


class ExportError(DpadError):
    """Tracing, converting or writing failed; no partial bundle is left behind."""


class EngineBuildError(ExportError):
    """The engine builder failed; the message ends with the builder's own errors."""


class BundleError(DpadError):
    """A bundle that is not what its manifest says; names the file."""


class ManifestError(BundleError):
    """The manifest is missing, is not JSON, or lacks or mistypes a field."""


class SchemaVersionError(ManifestError):
    """The manifest has a schema version that this runtime does not read."""


class MissingFile(BundleError):
    """A file named by the manifest does not exist."""


class TruncatedFile(BundleError):
    """A file's size differs from the manifest's."""


class AlteredFile(BundleError):
    """A file's SHA-256 differs from the manifest's."""


class UnlistedFile(BundleError):
    """A file in the bundle, or a reference to one, that the manifest does not list."""


class OutOfTreeFile(BundleError):
    """A path in the manifest that is absolute or leaves the bundle."""


class SymlinkedFile(BundleError):
    """A symbolic link in a bundle where a plain file must be; only a hub's cache may hold links."""


class EngineError(DpadError):
    """An engine could not be opened, or a step failed."""


class EngineMismatch(EngineError):
    """An engine built for another machine or another bundle; names the field that differs."""


class EngineUnavailable(EngineError):
    """No engine of the requested kind can run on this machine; says why."""


class ModelClosed(EngineError):
    """The model was closed, before the call or while it ran."""


class ParityError(DpadError):
    """An engine disagrees with PyTorch by more than the tolerance of its dtype."""


class ReplayError(DpadError):
    """A receipt cannot be replayed here; names the bundle, or the first pass that differs."""


class MissingExtra(DpadError):
    """A package of an extra is not installed; names the package and the extra."""
