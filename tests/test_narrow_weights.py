"""A float32 step with bfloat16 weights: one file, a cast in the graph, and any amount of memory."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import export, write_source

import dpad
from dpad.export.parity.compare import compare_bundle
from dpad.export.parity.feeds import random_feeds
from dpad.export.progress import Progress
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines import machine, onnx_session
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.engines.onnx_session import open_session


@pytest.fixture(scope="module", params=["llada", "dream"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A float32 bundle of a bfloat16 checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    source = write_source(folder / "source", request.param, torch_dtype="bfloat16", shards=2)
    return export(source, folder / "out", dtypes=("float32", "bfloat16"))


def test_weights_are_not_written_again(bundle: Bundle) -> None:
    """Fails if a float32 step writes the weights again, which for a 16 GB checkpoint would take 32 GB."""
    source = bundle.directory.parent / "source"
    for name in bundle.manifest.steps["float32"].weights:
        assert bundle.path(name).samefile(source / Path(name).name)


def test_the_step_agrees_with_pytorch_in_float32(bundle: Bundle) -> None:
    """Fails if a weight is cast wrongly or not at all."""
    report = compare_bundle(bundle, Progress())
    compared = {engine["variant"]: engine for engine in report["engines"] if engine["engine"] == "onnxruntime-cpu"}
    assert compared["float32"]["status"] == "passed"


def test_little_memory_makes_it_slow_and_not_different(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a machine without memory for float32 weights cannot decode, or decodes other tokens."""
    with dpad.load(bundle.directory) as model:
        wanted = model.generate([5, 6, 7], gen_length=64, temperature=0.5, seed=3)
    weights = sum(bundle.path(name).stat().st_size for name in bundle.manifest.steps["float32"].weights)
    monkeypatch.setattr(onnx_session, "available_memory", lambda: 2 * weights)
    with pytest.warns(UserWarning, match="in every step, which is slow"):
        model = dpad.load(bundle.directory, slots=100)
    with model:
        have = model.generate([5, 6, 7], gen_length=64, temperature=0.5, seed=3)
    np.testing.assert_array_equal(have.canvas, wanted.canvas)


def test_little_memory_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if float32 copies of weights stay in memory, which for 100 million weights are 400 MB."""
    sizes = {"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 4096, "n_layers": 6}
    source = write_source(tmp_path / "source", torch_dtype="bfloat16", **sizes)
    bundle = export(source, tmp_path / "out", dtypes=("float32",), max_batch=1)
    [(_, feed), *_] = random_feeds(bundle.manifest.contract, "float32", 1, 0)
    monkeypatch.setattr(onnx_session, "available_memory", lambda: 1000)
    with pytest.warns(UserWarning, match="in every step, which is slow"):
        session = open_session(bundle.path("float32/step.onnx"), "cpu")
    before = own_memory()
    for _ in range(2):
        session.run(None, feed)
    assert own_memory() - before < 200_000_000


def test_a_table_of_embeddings_is_looked_up_as_it_is_stored(bundle: Bundle) -> None:
    """Fails if the whole embedding is cast instead of the gathered rows; LLaDA's would take 2 GB."""
    graph = onnx.load(bundle.path("float32/step.onnx"), load_external_data=False).graph
    tables = {name for name in (w.name for w in graph.initializer) if "wte" in name or "embed_tokens" in name}
    assert {node.op_type for node in graph.node if tables & {*node.input}} == {"Gather"}


def own_memory() -> int:
    """Bytes of this process that are not mapped from files."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def test_available_memory_is_that_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a container's limit is ignored, page cache counts as used, or another system gives an error."""
    assert 1 << 20 < available_memory() < 1 << 50
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   4000 kB\n"}
    groups = {"memory.max": "3000000\n", "memory.current": "1500000\n"}
    groups["memory.stat"] = "anon 1000000\ninactive_file 300000\nactive_file 200000\n"
    older = {"memory.limit_in_bytes": "2000000\n", "memory.usage_in_bytes": "700000\n"}
    older["memory.stat"] = "inactive_file 5\ntotal_inactive_file 100000\n"
    for told, wanted in (
        ({}, machine.sys.maxsize),
        (files, 4096000),
        (files | {"/sys/fs/cgroup/memory.max": "max\n"}, 4096000),
        (files | {f"/sys/fs/cgroup/{name}": text for name, text in groups.items()}, 2000000),
        (files | {f"/sys/fs/cgroup/memory/{name}": text for name, text in older.items()}, 1400000),
    ):

        def read(path: Path, told: dict[str, str] = told) -> str:
            if str(path) not in told:
                raise FileNotFoundError(path)
            return told[str(path)]

        monkeypatch.setattr(Path, "read_text", read)
        assert available_memory() == wanted
