"""`likely_rows`: the query rows that cached steps will have, from a bundle's presets: what an engine warms up for.

engine.warm_up(likely_rows(contract, presets), seconds)
"""

from collections.abc import Mapping

from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.presets import Preset, resolve
from dpad.runtime.decoding.suffix import Gaussian, Uniform


def likely_rows(contract: StepContract, presets: Mapping[str, Preset]) -> list[int]:
    """Rows Q of one sequence, for the options that count by default and those of every preset.

    A dual cache attends with the block alone, and the row before it where predictions are shifted. A prefix cache adds
    what the schedule keeps of the suffix: all of it at first, less towards the end of the canvas.
    """
    rows = set()
    for name in (None, *presets):
        options = resolve(presets, contract, {"preset": name})
        block = options.block_length + contract.logit_shift
        kept = 0 if contract.block_causal else _kept(options)
        rows |= {block, block + kept // 2, block + kept}
    return sorted(rows)


def _kept(options: GenerationOptions) -> int:
    """Suffix rows that the schedule keeps on average, behind the first block."""
    length, schedule = max(0, options.gen_length - options.block_length), options.schedule
    if isinstance(schedule, Gaussian):
        return round(float(schedule.probabilities(length, options.gen_length).clip(max=1).sum()))
    return min(schedule.count, length) if isinstance(schedule, Uniform) else length
