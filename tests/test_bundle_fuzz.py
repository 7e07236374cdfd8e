"""Damaged bundles are refused or write the original's text; sealed ones give typed errors or any text.

Damage is accidental; sealed bundles are changed by an attacker, who also computes new hashes and a new digest.
"""

import random
import shutil
import time
from functools import partial
from pathlib import Path

import onnx
import pytest
from bundles import edit, export, write_source
from children import Child
from fuzzing import Tally, fuzz
from mutants import DAMAGES, SEALED, change_fields, copy, rewrite
from sealed import edit_graph

import dpad
from dpad.runtime import errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    return export(write_source(folder / "source"), folder / "bundle").directory


def write(bundle: Path) -> list[int]:
    """The tokens that the bundle generates for one short prompt."""
    with dpad.load(bundle, threads=1) as model:
        return model.generate("w5 w6", gen_length=32, block_length=32).token_ids


@fuzz(short=60, long=4000)
def test_damage_never_gives_another_text(mutants: int, tally: Tally, whole: Path, tmp_path: Path) -> None:
    """Fails if a damaged bundle writes another text, hangs, or gives an error that is not typed."""
    right = write(whole)
    for number in range(mutants):
        rng = random.Random(number)
        bundle = copy(whole, tmp_path / "bundle")
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(DAMAGES)(bundle, rng)
        written = tally.attempt(f"mutant {number}", partial(write, bundle))
        assert written in (None, right), number


@fuzz(short=60, long=2000)
def test_sealed_manifests(mutants: int, tally: Tally, whole: Path, tmp_path: Path) -> None:
    """Fails if any value of a manifest field, with a new digest, gives another error than this package's."""
    for number in range(mutants):
        rng = random.Random(number)
        bundle = copy(whole, tmp_path / "bundle")
        rewrite(bundle / "manifest.json", (whole / "manifest.json").read_bytes())
        edit(bundle, partial(change_fields, rng=rng))
        tally.attempt(f"mutant {number}", partial(write, bundle))


TRIES = """
    import json, os, sys, warnings
    import dpad

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native libraries write there too
    warnings.simplefilter("ignore")
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    for line in sys.stdin:
        bundle = json.loads(line)
        opened.clear()
        try:
            with dpad.load(bundle, threads=1) as model:
                answer = {"written": model.generate("w5 w6", gen_length=32, block_length=32).token_ids}
        except dpad.DpadError as error:
            answer = {"refused": type(error).__name__, "said": str(error)[:200]}
        except MemoryError:
            answer = {"refused": "MemoryError", "said": "under a limit of memory"}
        except BaseException as error:
            answer = {"untyped": f"{type(error).__name__}: {error}"[:500]}
        parts = (bundle, sys.prefix, sys.base_prefix, "/sys/fs/cgroup", "/proc", "/etc/os-release")
        answer["outside"] = [p for p in opened if p.startswith("/") and not p.startswith(parts) and ".py" not in p]
        print(json.dumps(answer), file=answers, flush=True)
"""


@fuzz(short=60, long=4000)
def test_sealed_files(mutants: int, tally: Tally, whole: Path, tmp_path: Path) -> None:
    """Fails if any content of a file gives another error than this package's, reads a file outside, or hangs.

    Each mutant runs in a child process, in which crashes of native libraries are counted.
    """
    untyped = {}
    with Child(TRIES, memory=6 << 30) as child:
        for number in range(mutants):
            rng = random.Random(number)
            bundle = copy(whole, tmp_path / "bundle")
            rewrite(bundle / "manifest.json", (whole / "manifest.json").read_bytes())
            try:
                rng.choice(SEALED)(bundle, rng)
            except (UnicodeError, ValueError):  # JSON was swapped with weights, which is not a mutant
                continue
            began = time.perf_counter()
            told = child.ask(str(bundle), seconds=60)
            tally.slowest = max(tally.slowest, time.perf_counter() - began)
            if "ended" in told and told["ended"] != "too slow":
                tally.refused[f"process ended: {told['ended']}"] += 1
            elif "refused" in told:
                tally.refused[told["refused"]] += 1
            elif "written" in told:
                tally.accepted += 1
            if (
                told.get("outside")
                or not {"refused", "written", "ended"} & told.keys()
                or told.get("ended") == "too slow"
            ):
                untyped[number] = told
    assert untyped == {}


OUTSIDE = ("../outside", "../../outside", "{absolute}", "./../outside", "link", "../float32/../../outside", "")


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_that_lie_outside_are_not_read(whole: Path, tmp_path: Path, location: str) -> None:
    """Fails if a sealed graph can use a file outside the bundle as its weights."""
    bundle = copy(whole, tmp_path / "bundle")
    outside = tmp_path / "outside"
    shutil.copy(bundle / "float32/model.safetensors", outside)
    shutil.copy(outside, bundle / "outside")  # a manifest may list it here, but it is not beside the step
    rewrite(bundle / "manifest.json", (whole / "manifest.json").read_bytes())

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(absolute=outside)

    if location == "link":
        (bundle / "float32/link").symlink_to(outside)
    edit_graph(bundle, change)
    with pytest.raises((errors.EngineError, errors.SymlinkedFile)):
        write(bundle)
