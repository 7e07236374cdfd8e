"""Checks every call of engine and builder against the real bindings of TensorRT and TensorRT-RTX.

`make test-trt-api` runs it. The simulations in other tests are based on documentation; `Checked` refuses every call
that the real bindings would refuse. TensorRT-RTX's builder itself runs in other tests.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import host_trt
import pytest
import tensorrt_rtx
import test_trt_open as openings
import trt_names
from checked_trt import Checked, NotInTensorRT, enums_of
from checkpoints import contract_of
from decoding import run
from host_cuda import HostDevice
from host_trt import HostTrt, opened
from null_builder import NullBuilder
from real_trt import REAL_API, real_tensorrt
from test_trt_engine import GEN, options_for, prompt
from trt_names import member_names, module_names

from dpad.export.engines import plan as plans
from dpad.export.engines.plan import build_plan
from dpad.export.progress import Progress
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.decoding.request import Request
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.tensorrt.engine import open_trt_engine
from dpad.runtime.errors import EngineBuildError

pytestmark = REAL_API
directory = openings.directory


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    """The real modules by name."""
    return {"tensorrt": real_tensorrt(tmp_path_factory.mktemp("stubs")), "tensorrt_rtx": tensorrt_rtx}


@pytest.fixture
def used(libraries: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The names used from a library by engines that `opened` and the tests of opening open; each use is checked."""
    asked: set[str] = set()

    def checked(trt: HostTrt, *arguments: Any, **settings: Any) -> Any:
        return open_trt_engine(Checked(trt, libraries[trt.__name__], used=asked), *arguments, **settings)

    for module in (host_trt, openings):
        monkeypatch.setattr(module, "open_trt_engine", checked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


@pytest.mark.parametrize("rtx", [False, True])
def test_a_step_asks_what_there_is(used: set[str], directory: Path, rtx: bool) -> None:
    """Fails if opening a plan, running and recording steps, or drawing tokens makes a call that the library lacks."""
    options = options_for("dual", decoder="entropy", temperature=0.7, top_k=5)
    with opened(directory, rtx=rtx, kernel_cache="kernels") as engine:
        for _ in range(2):
            [decoded] = run(engine, [Request(prompt(25, 5))], options)
        assert len(decoded.committed) == GEN
    assert "IExecutionContext.execute_async_v3" in used
    assert rtx == ("IRuntimeConfig.cuda_graph_strategy" in used)


SCENARIOS: list[Callable[..., None]] = [
    openings.test_a_stripped_plan_is_refitted_from_its_own_step,
    openings.test_weights_missing_after_a_refit_are_named,
    openings.test_a_plan_that_cannot_be_opened_says_why,
    openings.test_the_plan_that_decides_is_checked_too,
    openings.test_host_code_is_allowed_only_when_asked_for,
    openings.test_a_plan_that_is_not_valid_here_is_a_mismatch,
    openings.test_tensorrt_rtx_captures_by_itself_and_keeps_its_kernels,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_opening_asks_what_there_is(
    used: set[str], request: pytest.FixtureRequest, scenario: Callable[..., None]
) -> None:
    """Fails if a refit, a refusal or an option of opening makes a call that the library lacks, or misreads a result."""
    scenario(**{name: request.getfixturevalue(name) for name in inspect.signature(scenario).parameters})
    assert "Runtime" in used


@pytest.mark.parametrize("rtx", [False, True])
def test_simulated_enums_are_parts_of_the_real_ones(
    libraries: dict[str, ModuleType], directory: Path, rtx: bool
) -> None:
    """Fails if a simulated member does not exist in the real enum, or a value used in computations differs."""
    contract = contract_of(Checkpoint.open(directory))
    trt = HostTrt(HostDevice(), directory / "step.onnx", contract, rtx=rtx)
    simulated = enums_of(trt)
    assert len(simulated) >= (6 if rtx else 3)
    for name, kind in simulated.items():
        real = getattr(libraries[trt.__name__], name)
        for member in kind:
            found = real.__members__[member.name]
            assert not isinstance(member, int) or int(found) == int(member), (name, member)


@pytest.fixture
def builder(
    libraries: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, used: set[str]
) -> Callable[..., Checked]:
    """The null builder checked by the real API, on a machine with a simulated GPU."""
    monkeypatch.setattr(plans.Machine, "current", lambda: Machine("linux-x86_64", Gpu("none", "9.0"), ""))
    return lambda **answers: Checked(NullBuilder(**answers), libraries["tensorrt"], used=used)


EVERY_FLAG = BuildFlags(True, True, True, True, workspace=64)


def test_a_build_asks_what_there_is(
    builder: Callable[..., Checked], libraries: dict[str, ModuleType], directory: Path, tmp_path: Path
) -> None:
    """Fails if the real builder would refuse a flag, a profile, the monitor or the timing cache."""
    trt, real = builder(), libraries["tensorrt"]
    contract = contract_of(Checkpoint.open(directory))
    plan = build_plan(trt, directory / "step.onnx", contract, "float16", "9.0", Progress(), EVERY_FLAG)  # type: ignore[arg-type]
    assert bytes(plan.data) == b"a plan"
    told = trt._simulated.told
    flags = {arguments[0] for name, *arguments in told if name == "set_flag"}
    kinds = real.BuilderFlag
    compatible = {kinds.VERSION_COMPATIBLE, kinds.EXCLUDE_LEAN_RUNTIME}
    assert flags == {kinds.STRIP_PLAN, kinds.REFIT_IDENTICAL} | compatible
    assert trt._simulated.config.hardware_compatibility_level == real.HardwareCompatibilityLevel.AMPERE_PLUS
    assert ("set_memory_pool_limit", real.MemoryPoolType.WORKSPACE, 64 << 20) in told
    assert [name for name, *_ in told].count("add_optimization_profile") == 2
    assert [path.read_bytes() for path in tmp_path.rglob("timing-*")] == [b"timings"]


def test_the_real_library_without_a_builder_is_named(
    builder: Callable[..., Checked], libraries: dict[str, ModuleType], directory: Path
) -> None:
    """Fails if a library that returns no builder, for instance without a driver, gives the bindings' TypeError."""
    contract = contract_of(Checkpoint.open(directory))
    with pytest.raises(EngineBuildError, match=r"tensorrt gives no builder \(.*nullptr\):\ntensorrt gave no reason"):
        build_plan(libraries["tensorrt"], directory / "step.onnx", contract, "float16", "9.0", Progress())


def test_network_flags_exist(libraries: dict[str, ModuleType]) -> None:
    """Fails if the flag for ahead-of-time plugins does not exist in TensorRT, so that plugins would run in Python."""
    real = libraries["tensorrt"]
    plugins = 1 << int(real.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    assert plans.network_flags(real, "plugin") & ~plans.network_flags(real, "native") == plugins


@pytest.mark.parametrize(
    ("answers", "words"), [({"parses": False}, "null: no such op"), ({"builds": False}, "null: nothing was built")]
)
def test_a_failed_build_has_the_real_logger_s_words(
    builder: Callable[..., Checked], directory: Path, answers: dict[str, bool], words: str
) -> None:
    """Fails if the error lacks the messages that the parser or the builder writes to a real logger."""
    trt = builder(**answers)
    contract = contract_of(Checkpoint.open(directory))
    with pytest.raises(EngineBuildError, match=words):
        build_plan(trt, directory / "step.onnx", contract, "float16", "9.0", Progress())  # type: ignore[arg-type]


def test_a_wrong_call_is_caught(libraries: dict[str, ModuleType]) -> None:
    """Fails if `Checked` accepts a call that the real bindings refuse, so that the tests above prove nothing."""
    anything = SimpleNamespace(
        get_tensor_name=lambda *_, **__: "x",
        get_tensor_shape_profile=lambda *_: (),
        num_io_tensors=3,
        create_execution_context=lambda *_, **__: SimpleNamespace(set_device_memory=lambda *_: None),
    )
    real = libraries["tensorrt"]
    engine = Checked(anything, real, real.ICudaEngine)
    assert engine.get_tensor_name(0) == engine.get_tensor_name(index=0) == "x"
    context = engine.create_execution_context(real.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_device_memory(1 << 40, 5)
    wrong: dict[str, Callable[[], Any]] = {
        "get_tensor_shape_profile is not in tensorrt": lambda: engine.get_tensor_shape_profile,
        r"get_tensor_name takes none of \('0',\)": lambda: engine.get_tensor_name("0"),
        r"get_tensor_name takes none of \(0, 1\)": lambda: engine.get_tensor_name(0, 1),
        r"takes none of \(\) \{'place': 0\}": lambda: engine.get_tensor_name(place=0),
        "num_io_tensors cannot be set": lambda: setattr(engine, "num_io_tensors", 4),
        "create_execution_context takes none of": lambda: engine.create_execution_context(real.TensorIOMode.INPUT),
        "set_device_memory takes none of": lambda: context.set_device_memory(1 << 40),
    }
    for words, call in wrong.items():
        with pytest.raises(NotInTensorRT, match=words):
            call()
    with pytest.raises(AttributeError, match="get_engine_validity"):
        _ = Checked(anything, real, real.Runtime).get_engine_validity


def test_every_name_is_covered(
    libraries: dict[str, ModuleType],
    used: set[str],
    builder: Callable[..., Checked],
    directory: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Fails if the product uses a name that neither library has, or a method that no test here checks."""
    modules = list(libraries.values())
    asked = module_names("trt", "_trt")
    assert {"BuilderFlag.STRIP_PLAN", "CudaGraphStrategy.DISABLED", "Runtime"} <= asked
    assert {name for name in asked if not any(has(module, name) for module in modules)} == set()
    assert {name for name in module_names("trtp") if not has(modules[0].plugin, name)} == set()
    for rtx in (False, True):
        test_a_step_asks_what_there_is(used, directory, rtx)
    for scenario in SCENARIOS:
        test_opening_asks_what_there_is(used, request, scenario)
    test_a_build_asks_what_there_is(builder, libraries, directory, tmp_path)
    test_a_failed_build_has_the_real_logger_s_words(builder, directory, {"parses": False}, "no such op")
    covered = {name.rpartition(".")[2] for name in used}
    covered |= vars(tensorrt_rtx.IBuilderConfig).keys() - vars(modules[0].IBuilderConfig).keys()  # its real builder
    assert member_names(classes(modules)) - covered == set()
    simulated = {name for kind in (host_trt.HostEngine, host_trt.HostContext) for name in vars(kind)}
    assert {name for name in simulated if not name.startswith("_")} - covered == set()


def has(module: Any, name: str) -> bool:
    """Whether a module has a name, which may be `Enum.MEMBER`."""
    first, _, rest = name.partition(".")
    return hasattr(module, first) and (not rest or has(getattr(module, first), rest))


def classes(modules: list[ModuleType]) -> list[type]:
    return [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]


def test_a_name_that_is_new_is_found(
    libraries: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the test above would not notice a new use of TensorRT."""
    (tmp_path / "export").mkdir()
    monkeypatch.setattr(trt_names, "ROOT", tmp_path)
    (tmp_path / "export/new.py").write_text(
        "def build(trt, config):\n"
        "    flags, levels = trt.BuilderFlag, trt.MadeUp\n"
        "    config.set_preview_feature(flags.TF32, levels.HIGH, hasattr(flags, 'FAST'))\n"
        "def other(flags):\n"
        "    return flags.no_name_of_the_module\n"
    )
    assert module_names("trt") == {"BuilderFlag", "BuilderFlag.TF32", "BuilderFlag.FAST", "MadeUp", "MadeUp.HIGH"}
    assert member_names(classes(list(libraries.values()))) == {"set_preview_feature"}
