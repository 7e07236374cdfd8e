"""An export that is interrupted, killed, or out of disk space in any stage leaves the old bundle unchanged.

One process imports everything once and forks for every case; the child is stopped by its own progress object.
"""

import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source
from test_export import contents

from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle

STAGES = {  # the beginning of a stage's task name, and the settings that are needed to reach it
    "hash checkpoint": {},
    "check the values of": {},
    "copy": {"copies": True},
    "convert": {"dtypes": ("float16",)},
    "pack": {"weights": ("int4",)},
    "quantize": {"dtypes": ("w8a8",)},
    "trace": {},
    "check float32/step.onnx": {},
    "build": {"targets": ("tensorrt-rtx",), "capabilities": ("8.9",)},
    "hash files": {},
    "parity": {"parity": True},
}
_FULL = "(Export|EngineBuild)Error: .+"
FORKS = """
    import json, os, resource, signal, sys
    from contextlib import contextmanager
    from pathlib import Path
    import onnxruntime, polygraphy.comparator, tensorrt_rtx, torch
    from dpad.export.step import weights
    from dpad.export.step.trace_decide import trace_decide
    from dpad.export.parity.compare import compare_bundle
    from dpad.export.pipeline import export_bundle
    from dpad.export.settings import ExportSettings
    from dpad.export.progress import Progress
    from dpad.runtime.bundle.bundle import Bundle
    from dpad.runtime.errors import DpadError

    source, out, cases = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])

    class Stop(Progress):
        def __init__(self, stage, how):
            self.stage, self.how, self.reached = stage, how, False

        @contextmanager
        def task(self, description, total=None):
            if description.startswith(self.stage):
                self.stop()
            yield lambda amount: None

        def stop(self):
            self.reached = True
            if self.how == "disk":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
            else:
                os.kill(os.getpid(), getattr(signal, self.how))

    def child(stage, how, settings):
        progress, parity, copies = Stop(stage, how), settings.pop("parity", False), settings.pop("copies", False)
        if copies:
            weights.link_file = lambda source, target: False
        check = lambda stage, manifest, progress: compare_bundle(Bundle(stage, manifest), progress)
        try:
            settings = ExportSettings(max_batch=3, **settings)
            export_bundle(source, out, settings, progress, check=check if parity else None)
        except DpadError as error:
            return f"{type(error).__name__}: {error}" if progress.reached else f"before the stage: {error}"
        except KeyboardInterrupt:
            return "KeyboardInterrupt"
        return "exported"

    def tree():
        return {str(path): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    trace_decide(Bundle.open(out).manifest.contract)  # kept, so that not every child traces it
    before = tree()
    for stage, how, settings in cases:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                told = child(stage, how, {k: tuple(v) if type(v) is list else v for k, v in settings.items()})
            except BaseException as error:
                told = f"untyped {type(error).__name__}: {error}"
            os.write(write, told.encode())
            os._exit(0)
        os.close(write)
        told = b"".join(iter(lambda: os.read(read, 4096), b"")).decode()
        status = os.waitpid(pid, 0)[1]
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        print(json.dumps([stage, told, ended, tree() == before]), flush=True)
"""


@pytest.mark.parametrize(
    ("how", "words", "ended", "stages"),
    [
        ("SIGKILL", "", signal.SIGKILL, ("copy", "trace", "hash files")),  # no handler runs, so few stages suffice
        ("disk", _FULL, 0, ("hash checkpoint", "convert", "pack", "build", "hash files")),
        pytest.param("SIGKILL", "", signal.SIGKILL, tuple(STAGES), marks=pytest.mark.slow),
        pytest.param("SIGINT", "KeyboardInterrupt", 0, tuple(STAGES), marks=pytest.mark.slow),  # as for a full disk
        pytest.param("disk", _FULL, 0, tuple(STAGES), marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_is_stopped_leaves_the_old_bundle(
    how: str, words: str, ended: int, stages: tuple[str, ...], tmp_path: Path
) -> None:
    """Fails if a stage damages the old bundle, leaves files that no export removes, or raises an untyped error."""
    source = write_source(tmp_path / "source")
    out = export(source, tmp_path / "bundles/out").directory
    cases = json.dumps([(stage, how, STAGES[stage]) for stage in stages])
    command = [sys.executable, "-c", textwrap.dedent(FORKS), str(source), str(out), cases]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {stage: rest for stage, *rest in map(json.loads, ran.stdout.splitlines())}
    assert found.keys() == set(stages), ran.stderr
    wrong = {
        stage: (told, status, "unchanged" if same else "CHANGED")
        for stage, (told, status, same) in found.items()
        if not (re.fullmatch(words, told, re.DOTALL) and status == ended and same)
    }
    assert wrong == {}
    Bundle.open(out)
    export_bundle(str(source), out, ExportSettings(max_batch=2), Progress())
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def _cut(source: Path) -> None:
    shard = max(source.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


def _lose(source: Path) -> None:
    max(source.glob("*.safetensors")).unlink()


def _misname(source: Path) -> None:
    index = source / "model.safetensors.index.json"
    told: dict[str, Any] = json.loads(index.read_text())
    told["weight_map"] = dict.fromkeys(told["weight_map"], min(told["weight_map"].values()))
    index.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (_cut, r"model-00002-of-00002.safetensors is not a complete safetensors file"),
        (_lose, r"model-00002-of-00002.safetensors is missing"),
        (_misname, r"missing tensors, the first is"),
    ],
)
def test_a_checkpoint_that_broke_leaves_the_old_bundle(
    breaks: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    """Fails if an export of a damaged checkpoint changes the bundle that an earlier export made."""
    source = write_source(tmp_path / "source", shards=2)
    out = export(source, tmp_path / "out", dtypes=("float16",)).directory
    before = contents(out)
    breaks(source)
    with pytest.raises(errors.CheckpointError, match=said):
        export(source, tmp_path / "out", max_batch=3)
    assert contents(out) == before
    Bundle.open(out)
