"""Opening TensorRT plans on simulated hardware: refits, refusals, kernel caches; and the buckets of shapes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contract_of
from host_cuda import HostDevice, HostFault
from host_trt import Diagnostics, GraphStrategy, HostTrt, Specialization, Validity, opened

from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.engines import user_cache
from dpad.runtime.engines.gpu.buckets import Buckets
from dpad.runtime.engines.step import StepInputs
from dpad.runtime.engines.tensorrt.engine import open_trt_engine
from dpad.runtime.errors import EngineError, EngineMismatch

Prepare = Callable[[HostTrt], Any]


@pytest.fixture(scope="module")
def directory(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("llada")


def open_with(
    directory: Path, prepare: Callable[[HostTrt], Any] = id, plan: bytes = b"a plan", **settings: Any
) -> None:
    """Open and close an engine; all device memory must be free at the end, also after an error."""
    contract, device = contract_of(Checkpoint.open(directory)), HostDevice()
    trt = HostTrt(device, directory / "step.onnx", contract, rtx=settings.pop("rtx", False))
    prepare(trt)
    (directory / "host.plan").write_bytes(plan)
    contract = replace(contract, **settings.pop("contract", {}))
    try:
        open_trt_engine(trt, directory / "host.plan", contract, "float32", device, **settings).close()
    finally:
        assert device.closed and device.leaks() == []


def test_a_stripped_plan_is_refitted_from_its_own_step(directory: Path) -> None:
    """Fails if a stripped plan is not refitted, or gets weights of another step."""
    step, opened_from = directory / "step.onnx", []

    def strip(trt: HostTrt) -> None:
        trt.stripped, trt.refitted_from = True, opened_from

    open_with(directory, strip, step_onnx=step)
    assert opened_from == [str(step)]


def test_weights_missing_after_a_refit_are_named(directory: Path) -> None:
    """Fails if an engine opens although weights are missing."""

    def lose(trt: HostTrt) -> None:
        trt.missing = ["model.norm.weight", "lm_head.weight"]

    with pytest.raises(EngineError, match="lacks 2 weights .*step.onnx.*lm_head.weight"):
        open_with(directory, lose, step_onnx=directory / "step.onnx")
    with pytest.raises(EngineError, match="cannot be refitted from .*nowhere.onnx: simulated parser error"):
        open_with(directory, step_onnx=directory / "nowhere.onnx")


def test_a_library_without_a_refitter_says_so(directory: Path) -> None:
    """Fails if the error is the one that the bindings raise for a null pointer."""

    def none(*_: Any) -> Any:
        raise TypeError("factory function returned nullptr")

    for name in ("Refitter", "OnnxParserRefitter"):
        with pytest.raises(EngineError, match=r"cannot be refitted \(factory function returned nullptr\): "):
            open_with(directory, lambda trt, name=name: setattr(trt, name, none), step_onnx=directory / "step.onnx")


def test_a_plan_that_cannot_be_opened_says_why(directory: Path) -> None:
    """Fails if the error lacks the library's message, or a plan with another contract is opened."""
    with pytest.raises(EngineError, match="(?s)host.plan cannot be deserialised: simulated: .*bad magic number"):
        open_with(directory, plan=b"broken")
    with pytest.raises(EngineError, match="cannot be opened"):
        open_with(directory, plan=b"")
    with pytest.raises(EngineError, match="tensor 'key_cache.2' does not fit the contract"):
        open_with(directory, contract={"layers": 3})


def test_the_plan_that_decides_is_checked_too(directory: Path) -> None:
    """Fails if a wrong decide plan is accepted, or one that cannot be opened leaves the first plan open."""
    with pytest.raises(EngineError, match="tensor 'banned' does not fit the contract"):
        open_with(directory, decide=directory / "host.plan")
    (directory / "no.plan").write_bytes(b"broken")
    with pytest.raises(EngineError, match="no.plan cannot be deserialised"):
        open_with(directory, decide=directory / "no.plan")


def test_host_code_is_allowed_only_when_asked_for(directory: Path) -> None:
    """Fails if host code in a plan is allowed by default."""
    seen: list[Any] = []
    open_with(directory, seen.append)
    open_with(directory, seen.append, host_code=True)
    assert [trt.runtime.engine_host_code_allowed for trt in seen] == [False, True]


def test_tensorrt_rtx_captures_by_itself_and_keeps_its_kernels(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if both the engine and TensorRT-RTX capture graphs, or kernels are compiled again at each start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cuda_graphs, strategy in ((True, GraphStrategy.WHOLE_GRAPH_CAPTURE), (False, GraphStrategy.DISABLED)):
        with opened(directory, rtx=True, kernel_cache="kernels", cuda_graphs=cuda_graphs) as engine:
            canvas, empty = np.full((1, 8), 5), np.empty((1, 0), dtype=np.int64)
            for _ in range(3):
                engine.step(StepInputs(canvas, np.arange(8)[None], empty, np.zeros_like(canvas)))
            assert engine.hardware.counts["begin_capture"] == 0
            configs = engine.simulation.configs
            assert [config.cuda_graph_strategy for config in configs] == [strategy] * 2
            assert {c.dynamic_shapes_kernel_specialization_strategy for c in configs} == {Specialization.EAGER}
            assert engine.simulation.kernels == ([] if cuda_graphs else [b"compiled kernels"] * 2)
    for name in ("kernels", "decide-kernels"):
        assert (tmp_path / "dpad" / name).read_bytes() == b"compiled kernels"


def test_kernels_are_kept_when_the_engine_is_warm(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if kernels are not saved before a service is killed, or a refused cache overwrites a good one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with opened(directory, rtx=True, kernel_cache="kernels") as engine:
        assert user_cache.read("kernels") == b""
        engine.warm_up([8], 20.0)
        assert user_cache.read("kernels") == user_cache.read("decide-kernels") == b"compiled kernels"
    user_cache.write("kernels", b"kernels of before")
    open_with(directory, lambda trt: setattr(trt, "takes_kernels", False), rtx=True, kernel_cache="kernels")
    assert user_cache.read("kernels") == b"kernels of before"


def test_a_plan_that_is_not_valid_here_is_a_mismatch(directory: Path) -> None:
    """Fails if TensorRT-RTX's verdict on a plan is ignored or missing in the error."""

    def refuse(trt: HostTrt) -> None:
        trt.validity = Validity.INVALID, Diagnostics.VERSION_MISMATCH | Diagnostics.OLD_CUDA_DRIVER

    with pytest.raises(EngineMismatch, match=r"OLD_CUDA_DRIVER, VERSION_MISMATCH\): tensorrt_rtx gave no reason$"):
        open_with(directory, refuse, rtx=True)
    with pytest.raises(EngineMismatch, match="(?s)UNSUPPORTED_CC.*use engine torch-cuda.*--target tensorrt instead"):
        open_with(directory, lambda trt: setattr(trt, "validity", (Validity.INVALID, 2)), rtx=True)
    open_with(directory, lambda trt: setattr(trt, "validity", (Validity.SUBOPTIMAL, 0)), rtx=True)


@pytest.mark.parametrize("length", [16, 100, 512, 4096])
@pytest.mark.parametrize("block", [1, 16, 32])
def test_buckets_are_few_and_hold_what_they_pad(directory: Path, length: int, block: int) -> None:
    """Fails if a bucket exceeds the limit, is too small, pads by over a block or a quarter, or there are too many."""
    contract = replace(contract_of(Checkpoint.open(directory)), block_length=block, logit_shift=1)
    buckets = Buckets(contract, {"Q": length, "K": length, "R": min(block, length)})
    for axis in ("Q", "K"):
        assert buckets.padded(axis, 0) == 0
        assert buckets.padded(axis, length + 1) == length + 1  # the engine refuses it
        for size in range(1, length + 1):
            assert size <= buckets.padded(axis, size) <= min(length, size + max(block, size // 4 + 1))
        assert len(buckets.sizes[axis]) <= 12 + 4 * max(0, int(np.log2(max(length // block, 1))))
    if block + 1 <= length:
        assert buckets.padded("Q", block + 1) == block + 1
    assert {buckets.padded("R", size) for size in range(1, min(block, length) + 1)} == {min(block, length)}


def test_the_user_cache_loses_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an unusable cache folder is an error, or a partly written file can be read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    assert user_cache.read("x") == b""
    assert user_cache.write("x", b"one") and user_cache.write("x", b"two")
    assert user_cache.read("x") == b"two"
    assert [path.name for path in user_cache.folder().iterdir()] == ["x"]
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert user_cache.read("x") == b"" and not user_cache.write("x", b"one")


def test_the_simulation_is_strict() -> None:
    """Fails if the simulated hardware accepts errors that CUDA does not, so that the tests above prove nothing."""
    device = HostDevice()
    address = device.alloc(64)
    assert np.isnan(device.view(address, 64).view(np.float32)).all()
    host = np.zeros(64, dtype=np.uint8)
    device.download(host, address)
    assert not host.any()
    device.synchronise()
    assert host.all()
    with pytest.raises(HostFault, match="run over"):
        device.view(address + 32, 64)
    other = device.alloc(64)
    for copy, words in (
        ((other, 32, address, 32, 16, 3), "run over"),
        ((address + 8, 32, address, 32, 8, 2), "overlaps itself"),
    ):
        device.copy_2d(*copy)
        with pytest.raises(HostFault, match=words):
            device.synchronise()
    with pytest.raises(HostFault, match="2 lines of 16 bytes at pitches 32 and 8"):
        device.copy_2d(other, 8, address, 32, 16, 2)
    device.free(address)
    with pytest.raises(HostFault, match="after it was freed"):
        device.view(address, 1)
    with pytest.raises(HostFault, match="twice"):
        device.free(address)
    device.begin_capture()
    with pytest.raises(EngineError, match="Capture"):
        device.synchronise()
