"""`dpad` whose passes take longer in `dpad serve`, and of which one fails.

python tests/slow_passes.py 0.01 0 serve bundles/tiny       # 10 ms more a pass; pass number 0 is none
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import slow_passes  # by the name that the engine's process finds

import dpad
from dpad.cli import main
from dpad.commands import serve
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.step import StepInputs, StepOutputs


def load(seconds: float, broken: int, directory: Path, **options: Any) -> dpad.DiffusionModel:
    """In place of `dpad.load`, in the engine's process."""
    step, passes = OnnxEngine._step, []

    def slowly(self: OnnxEngine, inputs: StepInputs) -> StepOutputs:
        time.sleep(seconds)
        passes.append(inputs)
        if len(passes) == broken:
            raise RuntimeError("w77 of a user")
        return step(self, inputs)

    OnnxEngine._step = slowly  # type: ignore[method-assign]
    return dpad.load(directory, **options)


if __name__ == "__main__":
    serve.load = partial(slow_passes.load, float(sys.argv.pop(1)), int(sys.argv.pop(1)))  # type: ignore[assignment]
    main(prog_name="dpad")
