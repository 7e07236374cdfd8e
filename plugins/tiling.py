"""How the kernel is cut into programs: tile sizes, splits over keys, and its integer arguments.

    tile = tile_for(128 * group, "9.0")
    numbers = attend_integers(shape, Strides.contiguous(shape), scale_bits(0.125), splits, per_split)

One definition for every launcher: numbers here, symbolic shapes in a TensorRT plugin. Needs neither torch nor Triton.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
PROCESSORS = {"8.0": 108, "8.6": 84, "8.9": 142, "9.0": 132, "10.0": 148, "12.0": 170}  # SMs of the largest part
DTYPES = ("float16", "bfloat16")
HEAD_SIZES = (64, 96, 128)  # what is compiled ahead of time and tested; multiples of 16 up to 128 work
MAX_SPLITS = 16
COMBINE_ROWS = 8  # rows of one program of `combine`
COMBINE_WARPS = 4
MAX_REGISTERS = 255  # a thread: said aloud, or ptxas spills a few to fit one more program on an SM

_PROGRAMS_PER_SM = 2  # that fit by shared memory
_MIN_TILES = 4  # of keys in a split, or its fixed cost outweighs it


@dataclass(frozen=True)
class Tile:
    """Queries and keys of one program's tile, its warps, and the depth of its load pipeline.

    The pipeline has an index and a row in every stage: depth 3 keeps one tile of rows in flight while another is used.
    """

    block_m: int
    block_n: int = 64
    warps: int = 4
    stages: int = 3


# Hopper and Blackwell data-centre parts hold a product in few registers (wgmma, tcgen05); elsewhere
# a larger tile spills.
_LARGE = (Tile(32), Tile(64), Tile(128, warps=8))
_SMALL = (Tile(32), Tile(64, 32))


def tiles(capability: str) -> tuple[Tile, ...]:
    """The tiles that are compiled for a compute capability ("9.0"), by rising `block_m`."""
    return _LARGE if capability in ("9.0", "10.0", "10.3") else _SMALL


def tile_for(rows: int, capability: str) -> Tile:
    """The tile for `rows` = Q · H / G query rows of one key/value head."""
    choice = tiles(capability)
    return next((tile for tile in choice if tile.block_m >= rows), choice[-1])


def padded_head(size: int) -> int:
    """The power of two that holds a head of D elements."""
    return 1 << (size - 1).bit_length()


def scale_bits(scale: float) -> int:
    """`scale` · log2(e) as the integer of its float32 bits: plugins pass nothing but integers."""
    number: int = struct.unpack("<i", struct.pack("<f", scale * math.log2(math.e)))[0]
    return number


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Arithmetic:
    """What shapes are computed with: Python's numbers, or a TensorRT plugin's symbolic ones."""

    ceil_div: Callable[[Any, Any], Any] = ceil_div
    largest: Callable[[Any, Any], Any] = max


NUMBERS = Arithmetic()


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; symbolic in a plugin, but for `heads` and `kv_heads`."""

    batch: Any
    rows: Any
    cached: Any
    slots: Any
    heads: int
    kv_heads: int

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Strides:
    """Distances in heads (D elements) of sequences and their rows, of query and new rows, and of the pool's slots."""

    query_batch: Any
    query_row: Any
    new_batch: Any
    new_row: Any
    cache_row: Any

    @classmethod
    def contiguous(cls, shape: Shape) -> "Strides":
        """Of tensors without gaps."""
        heads, kv_heads = shape.heads, shape.kv_heads
        return cls(shape.rows * heads, heads, shape.rows * kv_heads, kv_heads, kv_heads)


def row_tiles(shape: Shape, tile: Tile, number: Arithmetic = NUMBERS) -> Any:
    """Programs along the query rows."""
    return number.ceil_div(shape.rows * shape.group, tile.block_m)


def tiles_per_split(shape: Shape, tile: Tile, splits: int, processors: int, number: Arithmetic = NUMBERS) -> Any:
    """Key tiles of one split, so that at most `splits` of them fill a GPU of `processors` SMs.

    With enough queries to fill it, one split takes all keys and the others are idle.
    """
    keys = number.ceil_div(shape.cached, tile.block_n) + number.ceil_div(shape.rows, tile.block_n)
    programs = row_tiles(shape, tile, number) * shape.kv_heads * shape.batch
    enough = number.ceil_div(keys * programs, processors * _PROGRAMS_PER_SM)
    return number.largest(number.largest(number.ceil_div(keys, splits), enough), _MIN_TILES)


def split_count(shape: Shape, tile: Tile, per_split: int) -> int:
    """Splits that have keys to attend."""
    keys = ceil_div(shape.cached, tile.block_n) + ceil_div(shape.rows, tile.block_n)
    return max(1, ceil_div(keys, per_split))


def attend_integers(shape: Shape, strides: Strides, bits: int, splits: int, per_split: Any) -> dict[str, Any]:
    """The integer arguments of `attend`, in its order; `bits` are the `scale_bits` of the scale."""
    return {
        "rows": shape.rows,
        "cached": shape.cached,
        "slots": shape.slots,
        "group": shape.group,
        **vars(strides),
        "scale_bits": bits,
        "splits": splits,
        "tiles_per_split": per_split,
    }
