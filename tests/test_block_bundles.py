"""Block-causal checkpoints through the public interface: export, load, generate, parity, and refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from block_reference import LENGTH, decode, forward_with, rules_of
from bundles import deciding, export, write_source
from checkpoints import BLOCK_CAUSAL, raw_config
from estimating import bounds
from host_cuda import HostDevice
from host_trt import HostTrt
from safetensors.torch import load_file

import dpad
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.progress import Progress
from dpad.models.checkpoint.checkpoint import parse_config
from dpad.models.presets import presets_of
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.cache import BLOCKS
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions, defaults
from dpad.runtime.decoding.presets import read_presets
from dpad.runtime.engines import candidates as found_here
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.gpu import cuda
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.errors import CheckpointError, ExportError, InvalidRequest

PLAN = "tensorrt-rtx-float16-sm89"
NO_GPU = Machine("linux-x86_64", None, "no GPU")
FITTING = Machine("linux-x86_64", Gpu("test", "8.9"), "")

each_family = pytest.mark.parametrize("family", BLOCK_CAUSAL)


@each_family
def test_a_bundle_writes_text_without_any_option(tmp_path: Path, family: str) -> None:
    """Fails if a bundle of a block-causal model needs options to generate text."""
    source = write_source(tmp_path / "source", family)
    bundle = export(source, tmp_path / "out")
    contract = bundle.manifest.contract
    assert (contract.family, contract.block_causal, contract.block_length) == (family, True, LENGTH[family])
    raw = json.loads((source / "config.json").read_text())
    forward = forward_with(raw, load_file(source / "model.safetensors"))
    with dpad.load(bundle.directory) as model:
        prompt = model.request("w5 w6 w7 w8 w9").prompt_ids
        theirs = decode(forward, prompt, rules_of(family, model.options()))
        result = model.generate("w5 w6 w7 w8 w9")
        assert (result.canvas.tolist(), result.nfe) == (theirs.tokens, theirs.nfe)
        assert result.text and len(result.commit_steps) == 128
        assert [each.canvas.tolist() for each in model.generate_batch(["w5 w6 w7 w8 w9"] * 2)] == [theirs.tokens] * 2
        for options, words in (({"cache": "prefix"}, "'prefix'"), ({"block_length": 16}, "16")):
            with pytest.raises(InvalidRequest, match=words):
                model.generate("w5 w6", **options)
        assert (bounds(model.engine, prompt, [5, 6], model.options(), draws=2, seed=(0,)) > 0).all()
    report = compare_bundle(bundle, Progress(), engines=["onnxruntime-cpu"], steps=1, trajectories=True)
    trajectories = report["engines"][0]["trajectories"]
    assert report["passed"] and trajectories["caches"] == [BLOCKS]
    assert trajectories["equal"] == trajectories["positions"] > 0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of an SDAR model with a plan built here by TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("compiled")
    settings: dict[str, Any] = {"dtypes": ("float16",), "capabilities": ("8.9",)}
    return export(
        write_source(folder / "source", "sdar", head_dim=32), folder / "out", targets=("tensorrt-rtx",), **settings
    )


def test_every_engine_serves_block_causal_models(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an engine that can run a block-causal model, plan or ONNX Runtime on CUDA, is not offered."""
    here = {each.name: each.obstacle for each in candidates(compiled, NO_GPU)}
    assert here.pop(PLAN) == "no GPU" and list(here) == ["torch-cuda", "onnxruntime-cuda"]
    monkeypatch.setattr(found_here, "_onnxruntime_obstacle", lambda provider, machine: None)
    there = {each.name: each.obstacle for each in candidates(compiled, FITTING)}
    assert there == {PLAN: None, "torch-cuda": None, "onnxruntime-cuda": None}


def test_a_compiled_bundle_decodes_and_passes_parity(
    compiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the plan of a block-causal model is not chosen, or writes another text than the step."""
    device = HostDevice()
    step = compiled.path("float16/step.onnx")
    contract, decide = compiled.manifest.contract, deciding(compiled)
    trt = HostTrt(device, step, contract, "float16", rtx=True, decide=decide)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Machine, "current", classmethod(lambda cls: FITTING))
    monkeypatch.setattr(cuda, "CudaDevice", lambda: device)
    prompts = ["w5 w6 w7 w8 w9", "w11"]
    with dpad.load(compiled.directory) as model:
        assert model.engine.name == PLAN
        ours = model.generate_batch(prompts, gen_length=32)
    with OnnxEngine(step, compiled.manifest.contract, "float16") as engine:
        theirs = dpad.DiffusionModel(engine, model.codec).generate_batch(prompts, gen_length=32)
    assert [(row.token_ids, row.nfe) for row in ours] == [(row.token_ids, row.nfe) for row in theirs]
    device = HostDevice()
    trt.device = device
    [engine_report] = require_passed(compare_bundle(compiled, Progress(), engines=[PLAN], steps=1))["engines"]
    assert engine_report["trajectories"]["caches"] == [BLOCKS] and engine_report["trajectories"]["positions"] > 0
    assert device.leaks() == []


def test_short_canvases(tmp_path: Path) -> None:
    """Fails if parity needs longer canvases than the bundle's limit, or a limit below one block is accepted."""
    source = write_source(tmp_path / "source", "fast_dllm")
    bundle = export(source, tmp_path / "out", max_length=LENGTH["fast_dllm"] + 1)
    require_passed(compare_bundle(bundle, Progress(), engines=["onnxruntime-cpu"], steps=1, trajectories=True))
    with pytest.raises(ExportError, match="max_length 7 is less than the model's block, 8"):
        export(source, tmp_path / "shorter", max_length=7)


def test_lengths_and_masks_that_config_json_leaves_out(tmp_path: Path) -> None:
    """Fails if the authors' config.json, which has neither block length nor mask id, cannot be read."""
    for family, own, block, mask in (("sdar", "block_size", 4, 151669), ("fast_dllm", "bd_size", 32, 151665)):
        raw = raw_config(family, vocab_size=151936)
        for lacking in (raw | {own: None, "mask_token_id": None}, {k: v for k, v in raw.items() if k != own}):
            _, config = parse_config(lacking)
            assert config.block_length == block
        assert parse_config(raw | {"mask_token_id": None})[1].mask_token_id == mask
        with pytest.raises(CheckpointError, match=own):
            parse_config(raw | {own: 0})


def test_sdar_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    """Fails if <|im_end|>, which is not the EOS in SDAR's config.json, does not end the text by default."""
    contract = StepContract("sdar", 2, 2, 1, 32, 151936, 151669, 151643, 0, 4, 256, 4, 32, True, block_causal=True)
    preset = read_presets(presets_of("JetLM/SDAR-4B-Chat", tmp_path, contract.eos_token_id))["default"]
    options = GenerationOptions(**{**defaults(contract), **preset})
    options.check(contract)
    assert options.eos_token_ids is not None and 151645 in options.eos_token_ids
