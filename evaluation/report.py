"""The document of a finished run, and the lines of it that people read.

document = report(settings, records, metrics)
document["metrics"]["strict_match"]     # {"value": 0.5, "standard_error": 0.05}
"""

import os
from collections.abc import Sequence
from typing import Any

from dpad.evaluation.journal import Record
from dpad.evaluation.scoring import mean
from dpad.runtime.machine import Machine

SCHEMA_VERSION = 1

# name -> value and standard error (None: one sample only)
Metrics = dict[str, tuple[float, float | None]]


def mean_scores(records: Sequence[Record]) -> Metrics:
    """Every score of the records, averaged over the samples."""
    return {name: mean([record["scores"][name] for record in records]) for name in records[0]["scores"]}


def report(settings: dict[str, Any], records: Sequence[Record], metrics: Metrics) -> dict[str, Any]:
    """The results document: plain values, the settings of the run among them.

    `cost` holds total and mean a sample of `nfe`, generated `tokens` (up to EOS) and `seconds`, where
    the records have them; seconds are those of this machine, with whatever else ran on it.
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


def machine_line() -> str:
    """Platform, processors and GPU in one line."""
    machine = Machine.current()
    gpu = f"{machine.gpu.name} ({machine.gpu.compute_capability})" if machine.gpu else "no GPU"
    return f"{machine.platform}, {os.cpu_count()} CPUs, {gpu}"
