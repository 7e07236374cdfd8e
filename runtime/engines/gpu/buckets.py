"""`Buckets`: the few sizes to which the axes of a compiled step are padded, so that shapes repeat.

    buckets = Buckets(contract, {"Q": 4096, "K": 4096, "R": 32})
    buckets.padded("Q", 70)          # 96

A new shape costs a compiled engine time: TensorRT computes what depends on it, TensorRT-RTX compiles kernels for it,
and a CUDA graph is captured. Buckets of Q and K are the multiples of the block length up to eight blocks; beyond, the
distance between buckets doubles whenever the size does, so that padding adds at most a block or a quarter. One further
bucket is exact, because most steps have its size: the rows of a dual-cache step, that is, the block, and the row before
it if predictions are shifted. Buckets of R are the block length and its doubles: reading the vocabulary matrix
dominates its cost, whatever the number of rows.
"""

from collections.abc import Mapping

from dpad.runtime.contract import StepContract

_FINE = 8  # multiples of the block length before the distance doubles


class Buckets:
    """Padded sizes of the axes Q, K and R."""

    def __init__(self, contract: StepContract, limits: Mapping[str, int], multiple: int = 1) -> None:
        """`limits` are the engine's largest sizes; buckets of Q and K are multiples of `multiple`, or the largest."""
        block = contract.block_length
        self.sizes = {
            "Q": _sizes(block, limits["Q"], block + contract.logit_shift, multiple),
            "K": _sizes(block, limits["K"], block, multiple),
            "R": _doubled(block, limits["R"]),
        }

    def padded(self, axis: str, size: int) -> int:
        """The smallest bucket of `axis` that holds `size`; `size` itself if it is 0 or larger than every bucket."""
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
