"""`Buckets`: the few sizes to which the axes of a compiled step are padded, so that shapes repeat.

    buckets = Buckets(contract, {"Q": 4096, "K": 4096, "R": 32})
    buckets.padded("Q", 70)          # 96

A shape costs a compiled engine something the first time: TensorRT works out what depends on it, TensorRT-RTX compiles
kernels for it, and a CUDA graph is captured. The sizes follow from the block length: its multiples up to eight blocks,
then steps that double whenever the size does, so that padding never adds more than a block or a quarter. One size more
is exact, because most steps have it: the rows of a dual-cache step, which are the block and, where predictions are
shifted, the row before it. R is the block, doubled until the rows fit: its cost is reading the vocabulary's matrix,
whatever the number of rows.
"""

from collections.abc import Mapping

from dpad.runtime.contract import StepContract

_FINE = 8  # multiples of the block before the steps double


class Buckets:
    """Padded sizes of the axes Q, K and R."""

    def __init__(self, contract: StepContract, limits: Mapping[str, int], multiple: int = 1) -> None:
        """`limits` are the largest sizes that the engine takes; Q and K are multiples of `multiple`, or the largest."""
        block = contract.block_length
        self.sizes = {
            "Q": _sizes(block, limits["Q"], block + contract.logit_shift, multiple),
            "K": _sizes(block, limits["K"], block, multiple),
            "R": _doubled(block, limits["R"]),
        }

    def padded(self, axis: str, size: int) -> int:
        """The smallest bucket of `axis` that holds `size`; 0 stays 0, and so does what no bucket holds."""
        if size == 0:
            return 0
        return next((bucket for bucket in self.sizes[axis] if bucket >= size), size)


def _sizes(block: int, longest: int, exact: int, multiple: int) -> tuple[int, ...]:
    sizes, size, step = {longest, min(exact, longest)}, block, block
    while size < longest:
        sizes.add(size)
        if size >= _FINE * step:
            step *= 2
        size += step
    return tuple(sorted({min(-(-size // multiple) * multiple, longest) for size in sizes}))


def _doubled(block: int, most: int) -> tuple[int, ...]:
    sizes, size = [most], block
    while size < most:
        sizes.append(size)
        size *= 2
    return tuple(sorted(sizes))
