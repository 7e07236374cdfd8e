"""Parity: compares the engines that run here with eager PyTorch, step by step and over whole trajectories.

    report = compare_bundle(bundle, progress)
    report["passed"], report["engines"][0]["steps"]["logits"]["max_abs"]

Steps are compared through Polygraphy, output by output, within the tolerance of the dtype. The decisions that an engine
takes from its logits are compared with PyTorch's decisions from the same logits. Trajectories are compared by the token
and the forward pass at which each position was committed: in float32 they must be equal, in 16 bit their agreement is
reported. The reference of packed weights is PyTorch with the same weights unpacked, so the tolerance depends on the
dtype of the rows alone. The error of packing itself is reported separately, if the bundle has the full weights too.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

from dpad.export.parity.decisions import compare_decisions
from dpad.export.parity.emulation import emulated_engine
from dpad.export.parity.feeds import Feed, random_feeds
from dpad.export.parity.packing_error import packing_error
from dpad.export.parity.runners import SessionRunner, StepRunner
from dpad.export.progress import Progress
from dpad.models.torch_engine import TorchEngine, open_torch_engine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import DYNAMIC, rows_dtype, weights_of
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions, defaults
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.candidates import Candidate, candidates, onnxruntime
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.machine import Machine, library_version
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.select import open_engine
from dpad.runtime.errors import EngineUnavailable, ParityError

# Allowed relative difference of an output. In float32 the largest difference is divided by the largest value. In 16 bit
# the mean difference is divided by the mean value, since one rounding of a sharp attention score can move a single
# element far. W8A8 is compared with float32.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "w8a8": 2e-1}
STATISTIC = {"float32": "max", "float16": "mean", "bfloat16": "mean", "w8a8": "mean"}

_UNCOMPUTED = "ONNX Runtime's CPU provider has no bfloat16; dpad parity --emulate computes in float32 and rounds"
_ROUNDED = "it rounds rows to float8 too, which the reference does not"

TRAJECTORY_DECODERS = ("threshold", "factor", "fixed", "entropy", "margin")
_GEN_LENGTH, _BLOCK_LENGTH = 64, 16
_PATIENCE = 600.0  # seconds; trajectories predicted to take longer run only on request


def compare_bundle(
    bundle: Bundle,
    progress: Progress,
    *,
    engines: Iterable[str] = (),
    steps: int = 3,
    seed: int = 0,
    trajectories: bool | None = None,
    emulate: bool = False,
) -> dict[str, Any]:
    """Compare every engine of the bundle that runs here (or those named) with PyTorch.

    Args:
        bundle: an opened bundle.
        progress: reports the work.
        engines: names from `dpad inspect`; empty means all.
        steps: number of random steps per mode.
        seed: seed of the steps and trajectories.
        trajectories: whether to compare whole decodes too; None means yes if the steps are fast enough.
        emulate: whether to compare steps in bfloat16 on the CPU too; see `emulation.py`.

    Returns:
        A JSON-ready report; `passed` is False if an engine that ran is out of tolerance, and None
        if no engine could be compared here.

    Raises:
        EngineUnavailable: an engine in `engines` is not in the bundle or cannot run.
    """
    found = _comparable(bundle, emulate)
    wanted = set(engines)
    if unknown := wanted - {candidate.name for candidate in found}:
        known = ", ".join(candidate.name for candidate in found)
        raise EngineUnavailable(f"no engine {min(unknown)!r} in {bundle.directory} (it has {known})")
    results = []
    for candidate in found:
        if wanted and candidate.name not in wanted:
            continue
        if candidate.obstacle is None:
            results.append(_compare(bundle, candidate, steps, seed, trajectories, progress))
            continue
        if wanted and sum(other.name == candidate.name for other in found) == 1:
            raise EngineUnavailable(f"{candidate.name} cannot be compared here: {candidate.obstacle}")
        built = "built, not run here" if candidate.entry else "not run here"
        results.append(_header(candidate, f"{built}: {candidate.obstacle}"))
    ran = [result for result in results if result["status"] != "skipped"]
    return {
        "reference": f"torch {library_version('torch')} eager",
        "platform": Machine.current().platform,
        "passed": all(result["status"] == "passed" for result in ran) if ran else None,
        "engines": results,
    }


def require_passed(report: dict[str, Any]) -> dict[str, Any]:
    """Return `report`, or raise `ParityError` naming the engines that failed; `passed` may be None."""
    failed = [f"{e['engine']} ({e['variant']}): {e['detail']}" for e in report["engines"] if e["status"] == "failed"]
    if failed:
        raise ParityError("parity failed:\n" + "\n".join(failed))
    return report


def _comparable(bundle: Bundle, emulate: bool) -> list[Candidate]:
    """The candidates for a comparison: the bundle's GPU engines, and every step in ONNX Runtime on the CPU."""
    found = []
    for candidate in candidates(bundle, Machine.current()):
        if "cpu" in (candidate.provider, candidate.compiled):
            continue
        apart = _ROUNDED if candidate.compiled and weights_of(candidate.variant) == "fp8" else None
        found.append(replace(candidate, obstacle=candidate.obstacle or apart))
    for name in bundle.manifest.steps:
        uncomputed = rows_dtype(name) == "bfloat16" and not emulate
        found.append(onnxruntime("cpu", name, bundle, _UNCOMPUTED if uncomputed else None))
    return found


def _is_bfloat16(candidate: Candidate) -> bool:
    return rows_dtype(candidate.variant) == "bfloat16"


def _header(candidate: Candidate, detail: str) -> dict[str, Any]:
    header = {"engine": candidate.name, "variant": candidate.variant, "file": candidate.file}
    return {**header, "status": "skipped", "detail": detail}


def _compare(
    bundle: Bundle, candidate: Candidate, steps: int, seed: int, wanted: bool | None, progress: Progress
) -> dict[str, Any]:
    precision = DYNAMIC if candidate.variant == DYNAMIC else rows_dtype(candidate.variant)
    reference = open_torch_engine(bundle, "float32" if precision == DYNAMIC else candidate.variant)
    feeds = list(random_feeds(bundle.manifest.contract, reference.dtype, steps, seed))
    with _open(bundle, candidate) as engine:
        task = f"parity of {candidate.name} {candidate.variant}: {len(feeds)} steps"
        with progress.task(task, 2 * len(feeds)) as told:
            runner = (
                StepRunner("engine", engine, told) if isinstance(engine, GpuEngine) else SessionRunner(engine, told)
            )
            outputs = compare_steps(StepRunner("torch", reference, told), runner, reference.contract, feeds, precision)
        decisions = compare_decisions(engine, feeds, seed)
        decodes = len(engine.contract.caches) * len(TRAJECTORY_DECODERS)
        predicted = 2 * _seconds(reference, feeds[0][1]) * decodes * _GEN_LENGTH
        if wanted or (wanted is None and predicted < _PATIENCE):
            with progress.task("parity of trajectories", decodes) as advance:
                trajectories = compare_trajectories(reference, engine, seed, advance)
        else:
            trajectories = {"skipped": f"not run; at this speed they take up to {predicted / 60:.0f} minutes"}
    failed = sorted(name for name, output in outputs.items() if not output["passed"])
    if not decisions["passed"]:
        failed.append("decisions")
    if precision == "float32" and trajectories.get("equal") != trajectories.get("positions"):
        failed.append("trajectories")
    detail = f"out of tolerance: {', '.join(failed)}" if failed else "within tolerance"
    if isinstance(engine, OnnxEngine) and _is_bfloat16(candidate):
        detail += "; computed in float32, with every result rounded to bfloat16"
    return {
        **_header(candidate, detail),
        "status": "failed" if failed else "passed",
        "modes": sorted({mode for mode, _ in feeds}),
        "steps": outputs,
        "decisions": decisions,
        "trajectories": trajectories,
        **packing_error(bundle, candidate.variant, reference, feeds),
    }


def _seconds(engine: TorchEngine, feed: Feed) -> float:
    """Measured duration of one step."""
    began = perf_counter()
    engine.run(feed)
    return perf_counter() - began


def _open(bundle: Bundle, candidate: Candidate) -> OnnxEngine | GpuEngine:
    if candidate.provider != "cpu":
        engine = open_engine(bundle, candidate.name, compile_step=_compile_step)
        assert isinstance(engine, GpuEngine)
        return engine
    path, contract = bundle.path(candidate.file), bundle.manifest.contract
    decide = bundle.path(bundle.manifest.decide)
    if _is_bfloat16(candidate):
        return emulated_engine(path, contract, decide)
    return OnnxEngine(path, contract, candidate.variant, decide=decide)


def _compile_step(bundle: Bundle, variant: str, device: str, slots: int | None) -> Engine:
    from dpad.models.compiled.open import open_compiled  # PyTorch's compiler takes seconds to import

    return open_compiled(bundle, variant, device, slots)


def compare_steps(
    reference: StepRunner, runner: BaseRunner, contract: StepContract, feeds: list[tuple[str, Feed]], dtype: str
) -> dict[str, dict[str, Any]]:
    """The measured and the allowed difference of every output over all feeds, for a step in `dtype`."""
    names = [spec.name for spec in contract.outputs()]
    # Relative differences of zeros are undefined; the absolute tolerance decides those.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore", divide="ignore"):
        runs = Comparator.run([reference, runner], data_loader=[OrderedDict(feed) for _, feed in feeds])
        finite = Comparator.validate(runs, check_inf=True, check_nan=True)
        allowed = _allowed(names, dtype, runs["torch"])
        compare = SimpleCompareFunc(
            atol=allowed, rtol=0.0, check_error_stat=STATISTIC[dtype], infinities_compare_equal=False
        )
        accuracy = Comparator.compare_accuracy(runs, compare_func=compare)
    report: dict[str, dict[str, Any]] = {}
    for iteration in next(iter(accuracy[0].values())):
        if set(iteration) != set(names):
            raise ParityError(f"the engine's outputs {sorted(iteration)} are not those of the contract")
        for name, result in iteration.items():
            kind = name.split(".")[0]
            if kind == "token_ids" and dtype != "float32":
                continue  # the two best tokens may swap by rounding; the comparison of logits limits that
            start = {"max_abs": 0.0, "mean_abs": 0.0, "allowed": 0.0, "checked": STATISTIC[dtype], "passed": True}
            entry = report.setdefault(kind, start)
            entry["max_abs"] = max(entry["max_abs"], result.max_absdiff)
            entry["mean_abs"] = max(entry["mean_abs"], result.mean_absdiff)
            entry["allowed"] = max(entry["allowed"], allowed[name])
            entry["passed"] = bool(entry["passed"] and finite and result)
    return report


def _allowed(names: list[str], dtype: str, iterations: list[dict[str, Any]]) -> dict[str, float]:
    """Absolute tolerance of each output; token ids must be equal.

    A logit error of d moves the odds by a factor of up to exp(2d).
    """
    size = np.max if STATISTIC[dtype] == "max" else np.mean
    sizes = {name: max(float(size(np.abs(outputs[name]))) for outputs in iterations) for name in names}
    allowed = {name: TOLERANCES[dtype] * sizes[name] for name in names}
    allowed["token_ids"] = 0.0
    allowed["odds_against"] = float(np.expm1(2 * allowed["logits"])) * sizes["odds_against"]
    return allowed


def compare_trajectories(reference: Engine, engine: Engine, seed: int, advance: Any) -> dict[str, Any]:
    """Decode random prompts in every mode, and count the positions where token and forward pass agree."""
    contract = reference.contract
    rng = np.random.default_rng(seed)
    block_length = contract.block_length if contract.block_causal else min(_BLOCK_LENGTH, contract.max_length // 2 or 1)
    gen_length = max(min(_GEN_LENGTH, contract.max_length // 2) // block_length, 1) * block_length
    room = contract.max_length - gen_length
    tokens = [t for t in rng.integers(0, contract.vocab_size, 48).tolist() if t != contract.mask_token_id]
    prompts = tokens[:12][:room], tokens[12:40][:room]
    requests = [Request(tuple(prompt), seed=seed) for seed, prompt in enumerate(prompts)][: contract.max_batch]
    equal = positions = 0
    for cache in contract.caches:
        for decoder in TRAJECTORY_DECODERS:
            wanted = {"gen_length": gen_length, "block_length": block_length, "decoder": decoder, "cache": cache}
            options = GenerationOptions(**{**defaults(contract), **wanted})
            ours, theirs = (_trajectory(e, requests, options) for e in (reference, engine))
            positions += len(ours)
            equal += sum(theirs.get(key) == value for key, value in ours.items())
            advance(1)
    tried = {"caches": list(contract.caches), "decoders": list(TRAJECTORY_DECODERS)}
    return {"equal": equal, "positions": positions, **tried}


def _trajectory(
    engine: Engine, requests: list[Request], options: GenerationOptions
) -> dict[tuple[int, int], tuple[int, int]]:
    """Map (request, position) to (token, forward pass that committed it)."""
    return {
        (event.index, position): (token, event.nfe)
        for event in decode(engine, requests, options)
        for position, token in zip(event.positions.tolist(), event.tokens.tolist())
    }
