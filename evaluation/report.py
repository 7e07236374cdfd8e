"""The results document of a finished run: how it is made, and how it is saved.

document = report(settings, records, metrics)
document["metrics"]["strict_match"]     # {"value": 0.5, "standard_error": 0.05}
save(document, Path("results.json"))
"""

import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpad.evaluation.errors import DataError
from dpad.evaluation.journal import Record
from dpad.evaluation.scoring import mean
from dpad.runtime.bundle.files import read_bytes
from dpad.runtime.engines.machine import Machine

SCHEMA_VERSION = 1
_LARGEST = 1 << 24  # most bytes of a document that is read; real ones have thousands

# name -> value and standard error (None: one sample only)
Metrics = dict[str, tuple[float, float | None]]


def mean_scores(records: Sequence[Record]) -> Metrics:
    """Every score of the records, averaged over the samples."""
    return {name: mean([record["scores"][name] for record in records]) for name in records[0]["scores"]}


def report(settings: dict[str, Any], records: Sequence[Record], metrics: Metrics) -> dict[str, Any]:
    """The results document as JSON values, including the settings of the run.

    `cost` holds the total and the mean per sample of `nfe`, generated `tokens` (up to EOS) and `seconds`, if
    the records have them. Seconds were measured on this machine, together with anything else that ran on it.
    """
    cost = {}
    for name in ("nfe", "tokens", "seconds"):
        if name in records[0]:
            total = sum(record[name] for record in records)
            cost[name] = {"total": total, "mean": total / len(records)}
    return {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "metrics": {name: {"value": value, "standard_error": error} for name, (value, error) in metrics.items()},
        "samples": len(records),
        "cost": cost,
        "machine": machine_line(),
    }


def check_replaceable(path: Path) -> None:
    """Raise `DataError` if `path` holds anything but the document of a run; an empty file may be replaced."""
    try:
        if not path.exists() or (path.is_file() and not path.stat().st_size):
            return
        small = path.is_file() and path.stat().st_size <= _LARGEST
        kept = json.loads(read_bytes(path)) if small else None
    except (OSError, ValueError, RecursionError):
        kept = None
    if not isinstance(kept, dict) or not {"schema_version", "task", "metrics"} <= kept.keys():
        raise DataError(f"{path} exists, but does not hold results of dpad eval; move it away, or give another --out")


def save(document: dict[str, Any], path: Path) -> None:
    """Replace `path` by the document, atomically; raises `DataError`, and then leaves `path` unchanged."""
    part = None
    try:
        path = Path(os.path.realpath(path))  # the target, if it is a link
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a regular file; give another --out")
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with part.open("x", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {error}; free disk space, and run the same command again") from None
    finally:
        if part is not None:
            with suppress(OSError):  # it was renamed, or never created
                part.unlink()


def machine_line() -> str:
    """Platform, processors and GPU in one line."""
    machine = Machine.current()
    gpu = f"{machine.gpu.name} ({machine.gpu.compute_capability})" if machine.gpu else "no GPU"
    return f"{machine.platform}, {os.cpu_count()} CPUs, {gpu}"
