"""Kernels compiled ahead of time for every GPU generation, on a machine without a GPU."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dpad.cli import main
from dpad.plugins import compile as compiler
from dpad.plugins import tiling
from dpad.plugins.compile import PTX_VERSIONS, SHARED_LIMITS, CompiledKernel, without_hidden_parameters
from dpad.plugins.errors import KernelCompileError
from dpad.plugins.tiling import Tile

# Resources of one SM: KiB of shared memory (each program takes 1 KiB more than it requests), and 32-bit registers.
SM_SHARED = {"8.0": 164, "8.6": 100, "8.9": 100, "9.0": 228, "10.0": 228, "12.0": 100}
SM_REGISTERS = 1 << 16
NEVER_ASKED = 48 << 10  # bytes of shared memory that a launch may use without an attribute


def compile_kernels(out: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the command line in a process of its own, since Triton's interpreter is on in this one."""
    command = [sys.executable, "-m", "dpad", "plugin", "compile", "--out", str(out), "--json", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    kernels = json.loads(ran.stdout)
    assert kernels == json.loads((out / "kernels.json").read_text())
    return kernels


def check(out: Path, kernel: dict[str, Any]) -> None:
    """Check from the written files that a plain launch of the kernel is possible."""
    ptx = (out / f"{kernel['entry']}.ptx").read_text()
    architecture = kernel["capability"].replace(".", "")
    assert kernel["spill_bytes"] == kernel["stack_bytes"] == 0, kernel
    assert kernel["notes"] == [], kernel
    assert 0 < kernel["registers"] <= 255
    assert kernel["shared_bytes"] <= SHARED_LIMITS[kernel["capability"]] << 10
    assert f".target sm_{architecture}" in ptx
    assert f".version {PTX_VERSIONS[kernel['capability']] / 10}" in ptx
    assert f".reqntid {kernel['threads']}" in ptx
    assert ptx.count(".param .") == len(kernel["parameters"])
    pointers = [name for name, kind in kernel["parameters"] if kind == "pointer"]
    assert ptx.count(".param .u64") == len(pointers)
    for forbidden in (".local", ".maxclusterrank", ".reqnctapercluster", "%cluster_ctaid", "tensormap"):
        assert forbidden not in ptx, forbidden
    assert "/" not in ptx.split(".visible .entry")[1].replace("//", "")
    code = (out / f"{kernel['entry']}.cubin").read_bytes()
    assert code[:4] == b"\x7fELF" and kernel["entry"].encode() in code
    assert re.findall(r"\.visible \.entry (\w+)\(", ptx) == [kernel["entry"]]


@pytest.mark.parametrize(
    "capability",
    [pytest.param(c, marks=[pytest.mark.slow] * (c in ("8.0", "10.0"))) for c in tiling.CAPABILITIES],
)
def test_every_generation_compiles(tmp_path: Path, capability: str) -> None:
    """Fails if a kernel spills, or needs more shared memory than the GPU has, or what a plugin cannot provide."""
    target = ("--compute-capability", capability)
    kernels = compile_kernels(tmp_path, *target, "--dtype", "bfloat16", "--head-size", "128")
    count = len(tiling.tactics(capability)) + len(tiling.tactics(capability, causal=True))
    if capability == "9.0":
        kernels += compile_kernels(tmp_path, *target, "--dtype", "float16", "--head-size", "64")
    for kernel in kernels:
        check(tmp_path, kernel)
    assert len(kernels) == (2 * count + 1) * (1 + (capability == "9.0"))
    one_name_each(tmp_path, kernels)
    modest = [k for k in kernels if k["shared_bytes"] <= NEVER_ASKED]
    kinds = {
        (k["dtype"], k["constants"]["PARTIAL"], k["constants"]["CAUSAL"]) for k in modest if "BLOCK_N" in k["constants"]
    }
    assert len(kinds) == 4 * (1 + (capability == "9.0")), "each has a tile that nobody needs to ask shared memory for"


def one_name_each(out: Path, kernels: list[dict[str, Any]]) -> None:
    """Assert unique names: two kernels of one name would overwrite a file, and TensorRT might confuse them."""
    names = [kernel["entry"] for kernel in kernels]
    assert len(set(names)) == len(names) == len(kernels)
    assert {path.stem for path in out.glob("*.ptx")} == set(names)
    bodies = {(out / f"{name}.ptx").read_text().replace(name, "") for name in names}
    assert len(bodies) == len(names), "two names for one kernel: a variant that is none"


def attends(kernels: list[dict[str, Any]], tile: Tile) -> list[dict[str, Any]]:
    """The kernels `attend` with this tile."""
    sizes = tile.block_m, tile.block_n
    return [k for k in kernels if (k["constants"]["BLOCK_M"], k["constants"].get("BLOCK_N")) == sizes]


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_as_many_programs_fit_as_the_table_says(tmp_path: Path, capability: str) -> None:
    """Fails if the table, which the choice of splits uses, counts more programs than an SM can hold."""
    kernels = compile_kernels(tmp_path, "--compute-capability", capability, "--dtype", "float16", "--head-size", "128")
    for tile in tiling.tactics(capability).values():
        found = attends(kernels, tile)
        assert len(found) == 2 + 2 * (tile in tiling.tactics(capability, causal=True).values())
        for kernel in found:
            assert tile.resident * (kernel["shared_bytes"] + 1024) <= SM_SHARED[capability] << 10
            assert tile.resident * kernel["threads"] * -(-kernel["registers"] // 8) * 8 <= SM_REGISTERS


def test_the_pipeline_of_a_hopper_kernel(tmp_path: Path) -> None:
    """Fails if products do not use wgmma, or if an iteration of the loop waits for a load that it has just started.

    A wait for rows leaves the loads of a later tile in flight, and no index is used in the iteration that loads it.
    """
    compile_kernels(tmp_path, "--compute-capability", "9.0", "--dtype", "bfloat16", "--head-size", "128")
    large = {t: sorted(tmp_path.glob(f"attend_*_m{t.block_m}_n{t.block_n}_*.ptx")) for t in tiling.tiles("9.0")}
    assert [len(paths) for paths in large.values()] == [2, 4]
    for tile, path in ((tile, path) for tile, paths in large.items() for path in paths):
        text = path.read_text()
        waits = text.index("cp.async.wait_group \t2;")
        loop = text[text.rindex("$L__BB", 0, waits) : text.index("bra", waits)]
        assert f"wgmma.mma_async.sync.aligned.m64n{tile.block_n}k16" in loop and "mma.sync.aligned.m16" not in text
        copies = 2 * tile.block_n * 128 * 2 // 16 // (tile.warps * 32)
        assert loop.count("cp.async.cg.shared.global") == loop.count(", 0x10, ") == copies
        lines = loop.splitlines()
        for number, line in enumerate(lines):
            for index in re.findall(r"ld\.global\.b32 \{ (%\w+) \}", line):
                uses = [later for later in lines[number + 1 :] if re.search(rf"{index}\b", later)]
                assert all(later.lstrip().startswith("mov.") for later in uses), (path.name, line, uses)
        assert "ld.global" in loop


def test_no_two_variants_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if kernels that differ in tile sizes, warps, stages, dtype, head, parts, blocks or GPU share a name.

    TensorRT may identify an engine's kernels by the name of their entry, and would mix up two tactics with one name.
    """
    named: list[tuple[str, Any]] = []
    monkeypatch.setattr(compiler, "_compile", lambda name, _, *what: named.append((f"{name}_{what[0]}", what)))
    cuts = [Tile(64, 128), Tile(32, 128), Tile(64, 64), Tile(64, 128, warps=8), Tile(64, 128, stages=2)]
    for capability, dtype, size in product(("8.0", "9.0"), tiling.DTYPES, tiling.HEAD_SIZES):
        for tile, partial, causal in product(cuts, (False, True), (False, True)):
            compiler.compile_attend(capability, dtype, size, tile, partial, causal)
        for splits in (2, 4, 8, 16):
            compiler.compile_combine(capability, dtype, size, splits)
    assert len(named) == 12 * (5 * 4 + 4) == len({name for name, _ in named}) == len({repr(what) for _, what in named})


def test_a_name_takes_the_place_of_another() -> None:
    """Fails if renaming an entry leaves a parameter with the old name, or renames another symbol."""
    ptx = ENTRY.format(body="ld.param.b32 %r1, [f_param_1]; call f2, (f); mov g_f, f;")
    assert compiler.renamed(ptx, "f", "new") == ptx.replace("f_param", "new_param").replace(" f(", " new(").replace(
        "(f); mov g_f, f;", "(new); mov g_f, new;"
    )


@pytest.mark.slow
def test_everything_compiles(tmp_path: Path) -> None:
    """Fails if the command without options leaves out a kernel, or one cannot be launched."""
    kernels = compile_kernels(tmp_path)
    assert {(k["capability"], k["dtype"], k["constants"]["HEAD"]) for k in kernels} == {
        (c, d, h) for c in tiling.CAPABILITIES for d in tiling.DTYPES for h in tiling.HEAD_SIZES
    }
    for kernel in kernels:
        check(tmp_path, kernel)
    one_name_each(tmp_path, kernels)


ENTRY = (
    ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u32 f_param_1,\n\t.param .u64 f_param_2\n)\n{{\n{body}\n}}"
)


def test_hidden_parameters_are_taken_out() -> None:
    """Fails if the entry keeps a parameter that only Triton's launcher would pass."""
    ptx = without_hidden_parameters(ENTRY.format(body="ld.param.b32 %r1, [f_param_1];"), 2)
    assert "f_param_1" in ptx and "f_param_2" not in ptx


@pytest.mark.parametrize("count", [1, 4])
def test_a_hidden_parameter_that_is_read_is_refused(count: int) -> None:
    """Fails if a kernel that uses scratch memory, or lacks an argument, is accepted."""
    with pytest.raises(KernelCompileError, match="reads parameter 1|has 3 parameters, but its source has 4"):
        without_hidden_parameters(ENTRY.format(body="ld.param.b32 %r1, [f_param_1];"), count)


def test_kernels_take_their_places_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an interrupted compilation leaves new kernels beside the old kernels.json."""
    kernels = [CompiledKernel(n, "9.0", "bfloat16", {}, (), 1, 0, 1, 0, 0, (), "3", f"ptx {n}", b"\x7f") for n in "ab"]

    def compile_with(*broken: Exception) -> Result:
        def made(*_: object) -> Iterator[CompiledKernel]:
            yield from kernels
            for error in broken:
                raise error

        monkeypatch.setattr(compiler, "compile_all", made)
        return CliRunner().invoke(main, ["plugin", "compile", "--out", str(tmp_path)])

    for error in (KernelCompileError("no"), OSError(28, "No space left on device")):
        assert compile_with(error).exit_code == 1
        assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert compile_with().exit_code == 0
    names = ["a.cubin", "a.ptx", "b.cubin", "b.ptx", "kernels.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_wrong_option_names_the_choices(tmp_path: Path) -> None:
    """Fails if a target without a kernel is accepted."""
    command = [sys.executable, "-m", "dpad", "plugin", "compile", "--out", str(tmp_path), "--compute-capability", "7.0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "'8.0', '8.6', '8.9', '9.0', '10.0', '12.0'" in ran.stderr
