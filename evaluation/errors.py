"""Errors of evaluation, a branch of the tree in `dpad.runtime.errors`.

    DpadError
    └── EvaluationError
        ├── DataError       a data file is missing, or a line of it is not what the task reads
        ├── ResumeError     the samples on disk are those of other settings
        └── SandboxError    candidate code cannot be isolated on this machine

Each message names the cause and the way out.
"""

from dpad.runtime.errors import DpadError


class EvaluationError(DpadError):
    """A task cannot be run as it was asked for."""


class DataError(EvaluationError):
    """A data file that cannot be read; names the file, and the line where there is one."""


class ResumeError(EvaluationError):
    """Samples kept by an earlier run that this one must not add to; names what differs."""


class SandboxError(EvaluationError):
    """The kernel refuses a part of the isolation in which candidate code is run."""
