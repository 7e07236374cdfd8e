"""The results of `make gpu-check` as a page for people."""

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """One page; parts that did not run say why."""
    device, ceilings = report["device"], report["ceilings"]
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in device["versions"].items())
    lines = [
        f"# {device['name']}",
        "",
        f"Made by `make gpu-check` in {report['seconds']} s. {versions}.",
        f"Measured ceilings: {ceilings['bandwidth_tb_s']:.2f} TB/s copied (read and written), "
        f"{ceilings['bfloat16_tflop_s']:.0f} TFLOP/s in bfloat16 products.",
    ]
    for name, title in _TITLES.items():
        part = report.get(name)
        lines += ["", f"## {title}", ""]
        if part is None:
            lines.append("Not asked for.")
        elif isinstance(part, dict) and ("skipped" in part or "error" in part):
            lines.append("Skipped: " + part["skipped"] if "skipped" in part else "Failed: " + part["error"])
        else:
            lines += _PARTS[name](part)
    return "\n".join(lines) + "\n"


def _kernel(part: dict[str, Any]) -> list[str]:
    worst = ", ".join(f"{dtype} {error:.1e}" for dtype, error in part["worst_relative_rms"].items())
    verdict = "all passed" if part["passed"] else f"FAILED: {part['failures'][:3]}"
    return [f"{part['cases']} random cases against the definition in float32, {verdict}. Worst: {worst}."]


def _ptx(part: dict[str, Any]) -> list[str]:
    rows = [[name, f"{case['relative_rms']:.1e}", f"{case['limit']:.1e}"] for name, case in part["cases"].items()]
    return _table(["launched by the CUDA driver alone", "relative RMS error", "limit"], rows)


def _decodes(part: dict[str, Any]) -> list[str]:
    rows = []
    for name, modes in part.items():
        if not isinstance(modes, dict):
            continue
        if "skipped" in modes or "error" in modes:
            rows.append([name, modes.get("skipped") or "failed: " + modes["error"], "", ""])
            continue
        for cache, found in modes.items():
            rows.append([name, cache, f"{100 * found['equal']:.1f} %", f"{found['step_ms']:.2f}"])
    return _table(["engine", "cache", "tokens equal to float32 on the CPU", "ms a step"], rows)


def _speed(part: list[dict[str, Any]]) -> list[str]:
    rows = []
    for entry in part:
        shape = [entry["model"], str(entry["queries"]), str(entry["cached"])]
        if "skipped" in entry:
            rows.append([*shape, entry["skipped"], *[""] * 6])
            continue
        times = [f"{entry['times'][name]['median_us']:.1f}" for name in ("kernel", "sdpa", "gather+sdpa")]
        ratios = [f"{entry['over_sdpa']:.2f}", f"{entry['over_gather_sdpa']:.2f}"]
        share = [
            f"{entry['bandwidth_tb_s']:.2f} ({100 * entry['share_of_bandwidth']:.0f} %)",
            f"{entry['tflop_s']:.0f}",
        ]
        rows.append([*shape, *times, *ratios, *share])
    head = ["model", "Q", "K", "kernel µs", "SDPA on gathered keys", "gather + SDPA"]
    return _table([*head, "times SDPA", "times gather + SDPA", "TB/s", "TFLOP/s"], rows)


def _step(part: dict[str, Any]) -> list[str]:
    rows = []
    for kind, modes in part.items():
        for name, found in modes.items():
            if not isinstance(found, dict):
                rows.append([kind, f"{name}: {found}", *[""] * 6])
                continue
            numbers = [f"{found[key]:.2f}" for key in ("python_ms", "graph_ms", "floor_ms", "graph_over_floor")]
            rows.append([kind, name, str(found["queries"]), str(found["cached"]), *numbers])
    return _table(["", "mode", "Q", "K", "from Python ms", "CUDA graph ms", "floor ms", "over floor"], rows)


def _sweep(part: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{entry['model']} Q={entry['queries']} K={entry['cached']}",
            entry["best"],
            f"{entry['chosen_over_best']:.2f}",
        ]
        for entry in part
    ]
    return _table(["shape", "fastest", "chosen over fastest"], rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


_TITLES = {
    "kernel": "Kernel against the definition",
    "ptx": "PTX without Triton's launcher",
    "eager": "Decodes through the eager engine",
    "speed": "Kernel against PyTorch's attention",
    "step": "A step of an 8B-shaped LLaDA, random bfloat16 weights, batch 1",
    "engines": "Decodes through compiled engines",
    "sweep": "Tiles and splits",
}
_PARTS = {
    "kernel": _kernel,
    "ptx": _ptx,
    "eager": _decodes,
    "speed": _speed,
    "step": _step,
    "engines": _decodes,
    "sweep": _sweep,
}
