"""Compares the predictions of `dpad plan` with counted, allocated and built sizes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import export, write_source
from checkpoints import BLOCK_CAUSAL, FAMILIES, raw_config
from click.testing import CliRunner
from host_trt import opened
from torch.utils.flop_counter import FlopCounterMode

from dpad.cli import main
from dpad.export.forecast import forecast, hazards
from dpad.export.forecast.forecast import MODES, Load, Sizes
from dpad.export.forecast.gpus import GPUS
from dpad.export.forecast.layouts import LAYOUTS
from dpad.export.hub import HUB_IDS
from dpad.models.checkpoint.checkpoint import FAMILIES as MODULES
from dpad.models.checkpoint.checkpoint import Checkpoint, parse_config
from dpad.models.checkpoint.headers import read_headers
from dpad.models.step import Step
from dpad.runtime.bundle.variant import PACKED

BYTE, PRODUCT = replace(GPUS["L4"], products=1e12), replace(GPUS["L4"], bandwidth=1e12)  # free products; free reads


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, **more: Any) -> int:
    """The FLOPs of two products of every query with every attended row; the arguments are shapes."""
    batch, queries, heads, size = query
    attended = key[1] + others[2][1]  # cache_indices [B, K]
    return 4 * int(batch * heads * queries * attended * size)


OP = {torch.ops.dpad.sparse_suffix_attention: _attention_flops}


def plan(*arguments: object) -> str:
    ran = CliRunner().invoke(main, ["plan", *map(str, arguments)])
    assert ran.exit_code == 0, ran.output
    return ran.output


def document(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(*arguments, "--json"))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_files(family: str, tmp_path: Path) -> None:
    """Fails if the forecast omits a tensor or counts one twice."""
    source = write_source(tmp_path / "source", family)
    stored = sum(entry.length for entry in Checkpoint.open(source).tensors.values())
    assert document(source, "--dtype", "float32")["plan"]["bytes"] == stored
    assert document(source, "--dtype", "bfloat16")["plan"]["bytes"] == stored // 2


@pytest.mark.parametrize("weights", PACKED)
def test_packed_weights_are_those_of_the_files(weights: str, tmp_path: Path) -> None:
    """Fails if the forecast of packed weights omits scales, or counts other weights as packed."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", dtypes=("float16",), weights=(weights,))
    [step] = bundle.manifest.steps.values()
    held = sum(
        entry.length for entry in read_headers([bundle.path(name) for name in step.weights], packed=True).values()
    )
    assert document(bundle.directory, "--dtype", "float16", "--weights", weights)["plan"]["bytes"] == held


@pytest.mark.parametrize(("family", "mode"), [*product(FAMILIES, MODES), *product(BLOCK_CAUSAL, forecast.BLOCK_CAUSAL)])
def test_products_are_those_that_a_step_makes(family: str, mode: str) -> None:
    """Fails if the floor's products differ from those that torch counts in a step."""
    architecture, config = parse_config(raw_config(family))
    load = Load(batch=2, length=128, block=config.block_length or 16, window=32)
    sizes, shift = Sizes.of(architecture, config), config.logit_shift
    floor = forecast.floor(sizes, "float16", PRODUCT, load, mode, shift)
    assert floor.bound == "products"
    step = Step(MODULES[architecture].Model(config)).eval()
    cached = torch.arange(floor.cached).expand(2, -1)
    queries = torch.arange(floor.cached, floor.cached + floor.queries).expand(2, -1)
    decoded = torch.arange(load.block).expand(2, -1)
    pool = [torch.zeros(floor.cached + 1, config.kv_heads, config.head_size) for _ in range(2 * config.layers)]
    canvas = torch.zeros(2, floor.cached + floor.queries, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=OP) as counter:
        step(canvas, queries, cached, decoded, pool)
    assert floor.milliseconds * PRODUCT.products * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_modes_compute_fewer_rows_than_vanilla_and_attend_the_rest() -> None:
    """Fails if a mode's rows differ from its cache policy, for 1024 tokens, the block at 512 and 64 kept tokens."""
    architecture, config = parse_config(raw_config("llada"))
    sizes = Sizes.of(architecture, config)
    found = {mode: forecast.floor(sizes, "float16", BYTE, Load(1, 1024), mode, 0) for mode in MODES}
    assert {mode: (floor.queries, floor.cached) for mode, floor in found.items()} == {
        "vanilla": (1024, 0),
        "none": (608, 0),
        "prefix": (96, 512),
        "dual": (32, 576),
    }
    moved = 2 * (sizes.products + sizes.head + 576 * sizes.cached)
    assert found["dual"].milliseconds == pytest.approx(1e3 * moved / BYTE.bandwidth / 1e9)


@pytest.mark.parametrize("family", [*FAMILIES, *BLOCK_CAUSAL])
def test_caches_are_what_the_engine_allocates(family: str, make_bundle: Callable[..., Path]) -> None:
    """Fails if keys, values and logits take more device memory than predicted, or less by a tenth."""
    with opened(make_bundle(family)) as engine:
        contract, allocated = engine.contract, engine.hardware.living()  # type: ignore[attr-defined]
    architecture, config = parse_config(raw_config(family))
    load = Load(contract.max_batch, contract.max_length, contract.block_length, contract.window)
    predicted = forecast.memory(Sizes.of(architecture, config), "float32", load).caches
    assert 0.9 * predicted <= allocated <= 1.1 * predicted


def test_a_plan_is_as_large_as_predicted(tmp_path: Path) -> None:
    """Fails if a plan is larger than its weights and the constant that TensorRT-RTX adds to every plan."""
    settings = {"targets": ("tensorrt-rtx",), "dtypes": ("float16",), "capabilities": ("8.9",)}
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", **settings)
    size = bundle.path(bundle.manifest.engines[0].file).stat().st_size
    predicted = document(bundle.directory)["plan"]["bytes"]
    assert predicted < size < predicted + 30_000_000


def test_published_names_need_no_network() -> None:
    """Fails if `dpad plan` of LLaDA or Dream needs a download, or their sizes of 16.0 and 15.2 GB change."""
    names = [name for name in HUB_IDS if name.removesuffix("-base") in LAYOUTS]
    assert {"llada", "llada-1.5", "dream", "llada-base", "dream-base"} <= set(names)
    sizes = {name: document(name)["plan"]["bytes"] for name in names}
    assert sizes["llada"] == 16_031_162_368 and sizes["dream"] == 15_231_233_024


def test_the_text_shows_what_fits_and_what_bounds() -> None:
    """Fails if the printed text lacks a row of memory, a floor or a hazard."""
    text = plan("llada", "--gpu", "L4", "--gpu", "H200", "--batch", 4, "--length", 4096)
    assert re.search(r"4 +4096 +16.0 GB +10.8 GB +2.0 GB +638 MB +29.5 GB +H200$", text, re.MULTILINE)
    assert re.search(r"L4 +\d+ p +\d+ p +64.3 m +64.7 m", text)
    assert "batch 4, length 4096: 29.5 GB" in text and "H200 (9.0): tensorrt-rtx has no target" in text


def test_parts_of_the_plugin_are_counted() -> None:
    """Fails if the forecast omits the plugin's partial results, or counts more splits than a shape has."""
    arguments = ("--batch", 4, "--length", 4096)
    [native], [plugin] = (document("llada", *arguments, *more)["memory"] for more in ((), ("--attention", "plugin")))
    rows = 4 * 4096 * 32  # so many query rows fill every GPU without splits
    assert (native["parts"], plugin["parts"]) == (0, rows * (128 + 1) * 4)
    assert plugin["total"] - native["total"] == plugin["parts"] and plugin["parts"] < 2**31 / 7
    [small] = document("llada", "--batch", 1, "--length", 16, "--attention", "plugin")["memory"]
    assert small["parts"] == 8 * 16 * 32 * (128 + 1) * 4
    assert re.search(r"recordings +parts +total", plan("llada", *arguments, "--attention", "plugin"))
    assert "parts" not in plan("llada", *arguments)


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({}, ("--dtype", "float32"), "float32: TensorRT's fused attention.*--dtype bfloat16"),
        ({}, ("--dtype", "float16"), "may exceed 65504"),
        ({"d_model": 80, "n_heads": 4}, (), "head size 20 is not a multiple of 16.*native"),
        ({"n_heads": 1, "n_kv_heads": 1}, (), "1 head: .*at least two"),
        ({}, ("--length", 1_000_000), "length 1000000: .*trained up to 128 tokens"),
        ({}, ("--weights", "int8"), "16 bit, so that a plan is .* larger, and may unpack.*int4"),
        ({}, ("--weights", "fp8"), "TensorRT-RTX may unpack.*int4"),
        ({}, ("--gpu", "B200"), r"B200 \(10.0\): tensorrt-rtx has no target.*--target tensorrt"),
    ],
)
def test_hazards_say_why_and_the_way_out(
    changes: dict[str, Any], arguments: tuple[object, ...], told: str, tmp_path: Path
) -> None:
    """Fails if a problem is not reported before the download, or without a reason."""
    (tmp_path / "config.json").write_text(json.dumps(raw_config("llada", max_sequence_length=128, **changes)))
    assert any(re.search(told, line) for line in document(tmp_path, *arguments)["hazards"])


def test_a_block_causal_model_is_planned_in_its_own_mode(tmp_path: Path) -> None:
    """Fails if the plan of SDAR has cache modes that it does not support, or lacks engines that can run it."""
    (tmp_path / "config.json").write_text(json.dumps(raw_config("sdar")))
    found = document(tmp_path, "--gpu", "L4", "--batch", 1)
    [floor] = found["floors"]
    assert {mode: (step["queries"], step["cached"]) for mode, step in floor["steps"].items()} == {"blocks": (4, 512)}
    assert not any("causal" in line for line in found["hazards"])


def test_a_build_that_this_machine_has_no_memory_for_is_a_hazard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a build that exceeds memory is not reported; 8 billion weights take 33 GB."""
    monkeypatch.setattr(hazards, "available_memory", lambda: 20_000_000_000)
    assert any(line.startswith("build: a plan takes about 32.6 GB") for line in document("llada")["hazards"])
    monkeypatch.setattr(hazards, "available_memory", lambda: 40_000_000_000)
    assert not any(line.startswith("build") for line in document("llada")["hazards"])


@pytest.mark.parametrize(("weights", "told"), [("int4", "19.5 GB"), ("int8", "33.4 GB"), ("fp8", "18.6 GB")])
def test_what_a_build_does_to_packed_weights_counts(weights: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the memory of a build of packed weights is too small; 19.3 GB were measured for int4."""
    monkeypatch.setattr(hazards, "available_memory", lambda: 2_000_000_000)
    found = document("llada", "--weights", weights)["hazards"]
    assert any(line.startswith(f"build: a plan takes about {told}") for line in found), found


def test_a_canvas_that_no_model_has_is_refused() -> None:
    """Fails if a canvas length far above any model's is not refused at once."""
    ran = CliRunner().invoke(main, ["plan", "llada", "--length", "999999999"])
    assert ran.exit_code == 2 and "1<=x<=1048576" in ran.stderr


@pytest.mark.parametrize("model", ["", "./nowhere", "lada"])
def test_what_is_no_model_is_an_error(model: str) -> None:
    """Fails if a mistyped model is not an error."""
    ran = CliRunner().invoke(main, ["plan", model])
    assert ran.exit_code == 1 and "CheckpointError" in ran.output


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_checkpoints_dtype_is_read_by_either_name(key: str, tmp_path: Path) -> None:
    """Fails if an invalid dtype gives a traceback, or one of the two keys is not read."""
    (tmp_path / "config.json").write_text(json.dumps(raw_config("llada", **{key: "float64"})))
    ran = CliRunner().invoke(main, ["plan", str(tmp_path)])
    assert ran.exit_code == 1 and f" {key} 'float64' is not one of float32" in ran.output
    (tmp_path / "config.json").write_text(json.dumps(raw_config("llada", **{key: "float16"})))
    assert document(tmp_path)["plan"]["variant"] == "float16"
