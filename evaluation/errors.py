"""Errors of evaluation, a branch of the tree in `dpad.runtime.errors`.

    DpadError
    └── EvaluationError
        ├── DataError       a file is missing or has the wrong contents, or a sample cannot be used
        ├── ResumeError     the samples on disk have other settings
        └── SandboxError    candidate code cannot be isolated on this machine

Each message names the cause and the way out.
"""

from dpad.runtime.errors import DpadError


class EvaluationError(DpadError):
    """A task cannot be run with these settings."""


class DataError(EvaluationError):
    """A file or a sample cannot be used; names the file and the line, or the sample."""


class ResumeError(EvaluationError):
    """Samples of an earlier run have other settings, so this run must not add to them; names what differs."""


class SandboxError(EvaluationError):
    """Candidate code cannot be isolated; names the part of the isolation that the kernel refuses."""
