"""The tables of the page: the results of each part as lines of Markdown."""

from collections.abc import Callable
from typing import Any

Lines = list[str]

_READING = {"max": "a maximum", "gemv": "a product with a vector"}


def table(head: list[str], rows: list[list[str]]) -> Lines:
    """A table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def lines(name: str, part: dict[str, Any]) -> Lines:
    """The section of the part `name`."""
    return TABLES[name](part)


def _number(value: Any, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ceilings(part: dict[str, Any]) -> Lines:
    reading = ", ".join(f"{part[f'read_{way}_tb_s']:.2f} TB/s read by {told}" for way, told in _READING.items())
    return [
        f"{reading} (the better of the two is what floors are made of), {part['copy_tb_s']:.2f} copied (read and "
        f"written), {part['bfloat16_tflop_s']:.0f} TFLOP/s in bfloat16 products."
    ]


def _kernel(part: dict[str, Any]) -> Lines:
    worst = ", ".join(
        f"{dtype.removeprefix('torch.')} {error:.1e}" for dtype, error in part["worst_relative_rms"].items()
    )
    return [f"{part['cases']} random cases against the definition in float32. Worst relative RMS error: {worst}."]


def _ptx(part: dict[str, Any]) -> Lines:
    rows = [[name, f"{case['relative_rms']:.1e}", f"{case['limit']:.1e}"] for name, case in part["cases"].items()]
    return table(["launched by the CUDA driver alone", "relative RMS error", "limit"], rows)


def _decodes(part: dict[str, Any]) -> Lines:
    rows = []
    for name, found in part["engines"].items():
        if "modes" not in found:
            rows.append([name, _why(found), "", "", ""])
            continue
        for place, (mode, result) in enumerate(found["modes"].items()):
            opened = _number(found.get("open_s"), 1) if place == 0 else ""
            rows.append([name, mode, f"{100 * result['equal']:.1f} %", _number(result["step_ms"]), opened])
    return table(["engine", "cache", "tokens equal to float32 on the CPU", "ms a step", "s to open"], rows)


def _recordings(part: dict[str, Any]) -> Lines:
    rows = [
        [
            name,
            f"{found['compared']} of {found['shapes']}",
            str(len(found["different"])),
            f"{found['worst_relative_rms']:.1e}",
            f"{found['limit']:.0e}",
        ]
        for name, found in part["engines"].items()
    ]
    head = ["engine", "shapes compared", "recordings that differ", "logits off from float32 on the CPU", "limit"]
    return table(head, rows)


def _placement(part: dict[str, Any]) -> Lines:
    return table(["model", "runs"], [[name, where] for name, where in part["models"].items()])


def _speed(part: dict[str, Any]) -> Lines:
    rows = []
    for entry in part["rows"]:
        shape = [entry["model"], str(entry["queries"]), str(entry["cached"])]
        if "skipped" in entry:
            rows.append([*shape, entry["skipped"], *[""] * 7])
            continue
        times = [f"{entry['times'][name]['median_us']:.1f}" for name in ("kernel", "sdpa", "gather+sdpa")]
        ratios = [f"{entry['over_sdpa']:.2f}", f"{entry['over_gather_sdpa']:.2f}"]
        share = f"{entry['bandwidth_tb_s']:.2f} ({100 * entry['share_of_bandwidth']:.0f} %)"
        goal = "met" if entry["meets_goal"] else "missed"
        rows.append([*shape, *times, *ratios, goal, share, f"{entry['tflop_s']:.0f}"])
    head = ["model", "Q", "K", "kernel µs", "SDPA on gathered keys", "gather + SDPA"]
    return table([*head, "times SDPA", "times gather + SDPA", "goal", "TB/s", "TFLOP/s"], rows)


def _sweep(part: dict[str, Any]) -> Lines:
    rows = [
        [
            f"{e['model']} Q={e['queries']} K={e['cached']}",
            e["best"],
            f"{e['chosen_over_best']:.2f}",
            ", ".join(f"{splits}: {us:.1f}" for splits, us in e["combine_us"].items()),
        ]
        for e in part["rows"]
    ]
    return table(["shape", "fastest", "chosen over fastest", "µs to add up parts"], rows)


def _bundle(part: dict[str, Any]) -> Lines:
    return [
        f"{part['weights_gb']:.1f} GB: random weights drawn and written in {part['draw_s']:.0f} s, exported in "
        f"{part['export_s']:.0f} s."
    ]


def _start(part: dict[str, Any]) -> Lines:
    phases, memory = part["phases_s"], part["memory_gb"]
    return [
        f"**{part['total_s']:.1f} s** in a process of its own, engine {part['engine']}.",
        "",
        *table(list(phases), [[f"{seconds:.1f} s" for seconds in phases.values()]]),
        "",
        "Memory of the device, GB; the pool is as large as the concurrent requests of this check need:",
        "",
        *table(list(memory), [[_number(size) for size in memory.values()]]),
    ]


def _step(part: dict[str, Any]) -> Lines:
    keys = ["step_ms", "products_merged_ms", "over_products", "products_apart_ms", "floor_ms", "over_floor", "eager_ms"]
    rows = [
        [
            mode,
            str(row["queries"]),
            str(row["cached"]),
            *(_number(row[key]) for key in keys),
            f"{row['relative_rms']:.1e}",
        ]
        for mode, row in part["modes"].items()
    ]
    head = ["mode", "Q", "K", "step ms", "products alone, merged", "over them", "products, one a matrix", "floor"]
    return [
        f"Engine {part['engine']}, batch 1; a step from its inputs on the host to its decisions there.",
        "",
        *table([*head, "over floor", "eager step ms", "logits off from the eager engine"], rows),
    ]


def _decoders(part: dict[str, Any]) -> Lines:
    keys = ("ms_per_pass", "tokens_per_s", "outside_engine_ms", "times_published")
    rows = []
    for name, row in part["decoders"].items():
        if "seconds" not in row:
            rows.append([name, _why(row), *[""] * 5])
            continue
        numbers = [_number(row.get(key), 2 if key != "tokens_per_s" else 0) for key in keys]
        rows.append([name, str(row["passes"]), _number(row["seconds"]), *numbers])
    head = ["decoder", "passes", "seconds", "ms a pass", "tokens/s", "of a pass outside the engine, ms"]
    return table([*head, "times the best published loop"], rows)


def _concurrent(part: dict[str, Any]) -> Lines:
    rows = []
    for count, row in part["requests"].items():
        if "skipped" in row:
            rows.append([count, row["skipped"], "", ""])
            continue
        rows.append(
            [count, *(_number(row[k], 0) for k in ("tokens_per_s", "tokens_per_s_of_each")), _number(row["times_one"])]
        )
    head = ["requests", "tokens/s of all", "tokens/s of each", "times one"]
    told = f"Engine {part['engine']}, cache {part['cache']}, {part['new_tokens']} new tokens each, four a pass."
    return [told, "", *table(head, rows)]


def _shares(part: dict[str, Any]) -> Lines:
    modes = part["modes"]
    groups = list(next(iter(modes.values()))["groups_us"])
    rows = []
    for mode, found in modes.items():
        total = sum(found["groups_us"].values()) or 1.0
        rows.append(
            [
                mode,
                *(f"{us / 1e3:.2f} ({100 * us / total:.0f} %)" for us in found["groups_us"].values()),
                _number(total / 1e3),
            ]
        )
    return table(["mode, ms", *groups, "all kernels"], rows)


def _precision(part: dict[str, Any]) -> Lines:
    modes = part["modes"]
    rows = [
        [
            mode,
            str(r["queries"]),
            _number(r["step_ms"]),
            _number(r.get("products_fp8_ms")),
            _number(r.get("over_products")),
        ]
        for mode, r in modes.items()
    ]
    return [
        *_start(part),
        "",
        *table(["mode", "Q", "step ms", "fp8 products alone", "over them"], rows),
        "",
        *_decoders(part),
    ]


def precisions(merged: dict[str, Any]) -> Lines:
    """A table that compares the large model in 16 bit and with packed weights: memory, start, step and pass."""
    parts = {name: part for group in merged["groups"].values() for name, part in group["parts"].items()}
    full, decoders = parts.get("step", {}), parts.get("end_to_end", {}).get("decoders", {})
    own = {mode: decoders.get(f"{full.get('engine')} {mode}", {}) for mode in ("prefix", "dual")}
    sixteen = {**parts.get("cold", {}), "modes": full.get("modes", {}), "decoders": own}
    rows = []
    for name, part in (("bfloat16", sixteen), ("fp8", parts.get("fp8", {})), ("int4", parts.get("int4", {}))):
        memory, modes, passes = part.get("memory_gb", {}), part.get("modes", {}), part.get("decoders", {})
        numbers = [memory.get("weights"), memory.get("in use")]
        for mode in ("prefix", "dual"):
            numbers += [modes.get(mode, {}).get("step_ms"), passes.get(mode, {}).get("ms_per_pass")]
        rows.append([name, *map(_number, numbers)])
    head = ["weights", "GB of weights", "GB in use", "prefix: step ms", "ms a pass", "dual: step ms", "ms a pass"]
    return table(head, rows)


def _why(found: dict[str, Any]) -> str:
    return str(found.get("skipped") or f"FAILED: {found.get('error')}")


TABLES: dict[str, Callable[[dict[str, Any]], Lines]] = {
    "ceilings": _ceilings,
    "kernel": _kernel,
    "ptx": _ptx,
    "eager": _decodes,
    "engines": _decodes,
    "recordings": _recordings,
    "placement": _placement,
    "speed": _speed,
    "sweep": _sweep,
    "bundle": _bundle,
    "packed_bundle": _bundle,
    "cold": _start,
    "warm": _start,
    "step": _step,
    "end_to_end": _decoders,
    "concurrent": _concurrent,
    "shares": _shares,
    "fp8": _precision,
    "int4": _precision,
}
