"""Opening the engine compiled by PyTorch: the choice of the step, the cache of compiled code, and obstacles."""

import gc
import os
import weakref
from pathlib import Path

import pytest
from decoding import run

from dpad.models.compiled.open import open_compiled
from dpad.models.torch_engine import open_torch_engine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import EngineError, EngineUnavailable

OPTIONS = GenerationOptions(gen_length=32, block_length=16, cache="dual", early_termination=False)
REQUESTS = [Request((5, 6, 7)), Request((8, 9, 10, 11, 12))]


@pytest.fixture(scope="module")
def bundle(whole: Path) -> Bundle:
    return Bundle.open(whole)


def test_a_bundle_decodes_as_the_reference_does(bundle: Bundle) -> None:
    """Fails if the engine has other weights than the bundle, another number of slots, or a wrong name."""
    with open_torch_engine(bundle) as reference:
        theirs = run(reference, REQUESTS, OPTIONS)
    with open_compiled(bundle, device="cpu", slots=300, compiled=False) as engine:
        ours = run(engine, REQUESTS, OPTIONS)
        assert (engine.name, engine.dtype, engine.slots.size) == ("torch-cpu", "float32", 300)
    assert [(one.tokens, one.nfe) for one in ours] == [(one.tokens, one.nfe) for one in theirs]


def test_a_closed_engine_holds_no_weights(bundle: Bundle) -> None:
    """Fails if `close` does not free the weights' memory."""
    engine = open_compiled(bundle, device="cpu", compiled=False)
    run(engine, REQUESTS, OPTIONS)
    weights = [weakref.ref(one) for one in gc.get_objects() if type(one).__name__ == "Merged"]
    assert weights
    engine.close()
    gc.collect()
    assert not any(weight() is not None for weight in weights)
    with pytest.raises(EngineError, match="closed"):
        run(engine, REQUESTS, OPTIONS)


def test_what_is_in_the_way_is_said(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a missing step, GPU or compiler gives an error of PyTorch."""
    with pytest.raises(EngineUnavailable, match="no step float16 .* --dtype float16"):
        open_compiled(bundle, "float16", "cpu", compiled=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match=r"finds no compiler \(g\+\+ or .*install"):
        open_compiled(bundle, device="cpu")


def test_compiled_code_is_kept_in_the_cache_of_the_user(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if every start compiles, the user's own folder is overridden, or an unwritable folder is used."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # to be restored
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    open_compiled(bundle, device="cpu").close()
    assert str(tmp_path) not in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_compiled(bundle, device="cpu").close()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache/dpad/inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    open_compiled(bundle, device="cpu").close()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
