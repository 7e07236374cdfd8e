"""`likely_rows` predicts from a bundle's presets how many query rows cached steps will have, for an engine's warm-up.

engine.warm_up(likely_rows(contract, presets), seconds)
"""

from collections.abc import Mapping

from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.presets import Preset, resolve
from dpad.runtime.decoding.suffix import Gaussian, Uniform


def likely_rows(contract: StepContract, presets: Mapping[str, Preset]) -> list[int]:
    """Query rows Q of one sequence, ascending, for the default options and those of every preset.

    With a dual cache a step's queries are the block, and the row before it if predictions are shifted. A prefix cache
    adds the suffix rows that the schedule keeps: all of them at first, fewer towards the end of the canvas.
    """
    rows = set()
    for name in (None, *presets):
        options = resolve(presets, contract, {"preset": name})
        block = options.block_length + contract.logit_shift
        kept = 0 if contract.block_causal else _kept(options)
        rows |= {block, block + kept // 2, block + kept}
    return sorted(rows)


def _kept(options: GenerationOptions) -> int:
    """Suffix rows that the schedule keeps on average behind the first block."""
    length, schedule = max(0, options.gen_length - options.block_length), options.schedule
    if isinstance(schedule, Gaussian):
        return round(float(schedule.probabilities(length, options.gen_length).clip(max=1).sum()))
    return min(schedule.count, length) if isinstance(schedule, Uniform) else length
