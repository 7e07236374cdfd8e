"""Formats a parity report as lines of text.

    for line in parity_lines(report): print(line)

The report itself is JSON; see `parity.compare_bundle`.
"""

from collections.abc import Iterator
from typing import Any


def parity_lines(report: dict[str, Any]) -> Iterator[str]:
    """One line for each engine, followed by its measured and allowed differences."""
    yield f"parity with {report['reference']}:"
    for engine in report["engines"]:
        yield f"  {engine['status']:7} {engine['engine']} ({engine['variant']}): {engine['detail']}"
        for name, output in engine.get("steps", {}).items():
            allowed = f"{output['checked']} {output['allowed']:.2e}" if output["allowed"] else "none"
            mean = f", mean {output['mean_abs']:.2e}" if output["checked"] == "mean" else ""
            yield (f"            {name:13} largest difference {output['max_abs']:.2e}{mean}, allowed {allowed}")
        if decided := engine.get("decisions"):
            yield (
                f"            decisions     {decided['other_tokens']} of {decided['rows']} rows with another token, "
                f"largest difference {max(decided['differences'].values()):.2e}, allowed {decided['allowed']:.2e}"
            )
        if packing := engine.get("packing"):
            yield (
                f"            packed weights change the logits by {packing['relative']:.2%} of their size on average: "
                f"mean {packing['mean_abs']:.2e}, largest {packing['max_abs']:.2e}"
            )
        trajectories = engine.get("trajectories", {})
        if "skipped" in trajectories:
            yield f"            trajectories  {trajectories['skipped']} (dpad parity --trajectories)"
        elif trajectories:
            yield (
                f"            trajectories  {trajectories['equal']} of {trajectories['positions']} positions "
                "committed with the same token in the same pass"
            )
