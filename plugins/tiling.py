"""Divides the kernel's work into programs: tile sizes, splits over keys, and the kernel's integer arguments.

    tile = tile_for(128 * group, "9.0")
    numbers = attend_integers(shape, Strides.contiguous(shape), scale_bits(0.125), block, splits, per_split)

All launchers use these definitions, with numbers or, in a TensorRT plugin, with symbolic sizes. They need neither torch
nor Triton.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpad.plugins.errors import AttentionError

CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
PROCESSORS = {"8.0": 108, "8.6": 84, "8.9": 142, "9.0": 132, "10.0": 148, "12.0": 170}  # SMs of the largest GPU of each
DTYPES = ("float16", "bfloat16")
HEAD_SIZES = (64, 96, 128)  # compiled ahead of time and tested; other multiples of 16 up to 128 work as well
MAX_SPLITS = 16
PLUGIN_SPLITS = 8  # most splits in TensorRT's plugins, where the parts are tensors of the network
COMBINE_ROWS = 4  # rows of one program of `combine`: with heads of 128, each thread loads 16 bytes per split
COMBINE_WARPS = 4
MAX_REGISTERS = 255  # per thread; without this limit ptxas spills a few to fit one more program on an SM

_COMBINE_KEYS = 256  # number of keys that a program attends in the time that `combine` takes on an H100


@dataclass(frozen=True)
class Tile:
    """The tile of one program.

    Attributes:
        block_m, block_n: query rows, and keys per turn of the loop.
        warps: warps of the program.
        stages: depth of the software pipeline; with 3, one tile of keys is loaded while another is used.
        resident: programs that an SM holds at a time.
    """

    block_m: int
    block_n: int = 64
    warps: int = 4
    stages: int = 3
    resident: int = 1


# Measured on an H100: of 40 tiles (16 to 128 query rows, 32 to 128 keys, 4 and 8 warps, 2 to 4 stages) and 7 numbers of
# splits, the first tile was the fastest or within 1 % of it at the 12 shapes of steps with more than 640 keys; smaller
# tiles were no faster for few query rows. The second tile reads half as many bytes per matrix product; the builder of
# an engine times it. Blackwell's data-centre GPUs can also keep products outside registers (tcgen05), so they use the
# same two tiles; nothing was measured there.
_LARGE = (Tile(64, 128), Tile(128, warps=8))
# On other GPUs larger tiles spill registers. Not measured.
_SMALL = (Tile(32), Tile(64, 32))
_TILES = {"8.0": (Tile(32, resident=2), Tile(64, 32, resident=2)), "9.0": _LARGE, "10.0": _LARGE, "10.3": _LARGE}
# Fits into 48 KiB of shared memory, which a program gets without an opt-in by its launcher. Not measured.
_MODEST = Tile(32, 32, resident=2)


def tiles(capability: str) -> tuple[Tile, ...]:
    """The tiles that are used on a compute capability, such as "9.0"."""
    return _TILES.get(capability, _SMALL)


def tactics(capability: str, causal: bool = False) -> dict[int, Tile]:
    """The tiles that TensorRT's builder times, by tactic number: `tiles`, and a small one that fits on every GPU.

    With blocks, `causal`, tiles are left out that have no registers for the blocks' mask. A number means the same tile
    with and without blocks, because timings may be cached by number.
    """
    choice = tiles(capability)
    every = dict(enumerate((*choice, _MODEST), start=1))
    return {number: tile for number, tile in every.items() if not (causal and choice is _LARGE and tile is choice[0])}


def tile_for(rows: int, capability: str, causal: bool = False) -> Tile:
    """The tile for `rows` = Q · H / G query rows of one key/value head.

    With blocks, `causal`, it is the last tile, because the first has no registers left for the blocks' mask.
    """
    first, last = choice = tiles(capability)
    return first if not causal and (choice is _LARGE or rows <= first.block_m) else last


def padded_head(size: int) -> int:
    """The smallest power of two that is at least D."""
    return 1 << (size - 1).bit_length()


def scale_bits(scale: float) -> int:
    """The float32 bits of `scale` · log2(e) as an integer, because plugins pass integers only.

    Raises `AttentionError` for a scale that is not above 0: the kernel finds the largest score before it scales.
    """
    if not scale > 0:
        raise AttentionError(f"sparse_suffix_attention: the kernel needs a scale above 0, not {scale}")
    number: int = struct.unpack("<i", struct.pack("<f", scale * math.log2(math.e)))[0]
    return number


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Arithmetic:
    """The operations with which sizes are computed: on Python's integers, or on a TensorRT plugin's symbolic sizes.

    `fits(total, size)` is the number of times that `size` fits into the integer `total`.
    """

    ceil_div: Callable[[Any, Any], Any] = ceil_div
    largest: Callable[[Any, Any], Any] = max
    smallest: Callable[[Any, Any], Any] = min
    fits: Callable[[int, Any], Any] = int.__floordiv__


NUMBERS = Arithmetic()


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; in a plugin all but `heads` and `kv_heads` are symbolic."""

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
    """Strides in heads (D elements): of sequences and rows, in the query and the new rows, and of the pool's slots."""

    query_batch: Any
    query_row: Any
    new_batch: Any
    new_row: Any
    cache_row: Any

    @classmethod
    def contiguous(cls, shape: Shape) -> "Strides":
        """The strides of contiguous tensors."""
        heads, kv_heads = shape.heads, shape.kv_heads
        return cls(shape.rows * heads, heads, shape.rows * kv_heads, kv_heads, kv_heads)


def row_tiles(shape: Shape, tile: Tile, number: Arithmetic = NUMBERS) -> Any:
    """Number of programs along the query rows."""
    return number.ceil_div(shape.rows * shape.group, tile.block_m)


def key_tiles(shape: Shape, tile: Tile, number: Arithmetic = NUMBERS) -> Any:
    """Number of tiles of cached keys and of new keys."""
    return number.ceil_div(shape.cached, tile.block_n) + number.ceil_div(shape.rows, tile.block_n)


def tiles_per_split(shape: Shape, tile: Tile, splits: int, processors: int, number: Arithmetic = NUMBERS) -> Any:
    """Key tiles per split, chosen so that at most `splits` splits fill a GPU of `processors` SMs once.

    If the query rows alone fill the GPU, one split takes all keys and the others are idle.
    """
    keys = key_tiles(shape, tile, number)
    programs = row_tiles(shape, tile, number) * shape.kv_heads * shape.batch
    room = number.largest(number.fits(processors * tile.resident, programs), 1)
    return number.largest(number.ceil_div(keys, splits), number.ceil_div(keys, room))


def most_parts(rows: Any, splits: int, capability: str, number: Arithmetic = NUMBERS) -> Any:
    """The most splits, up to `splits`, that any tactic can use on a full GPU, for `rows` = B · Q · H of the output.

    It does not depend on the tactic, so that `attend_parts` and `combine_parts` agree, whichever tile was chosen.
    """
    return number.largest(number.smallest(number.fits(_part_rows(capability), rows), splits), 1)


def part_rows(rows: Any, splits: int, capability: str, number: Arithmetic = NUMBERS) -> Any:
    """The most rows of D elements that `most_parts` parts of `rows` = B · Q · H take.

    It never falls as a shape grows, so memory for the largest shape suffices for every other one.
    """
    return number.largest(number.smallest(rows * splits, _part_rows(capability)), rows)


def _part_rows(capability: str) -> int:
    """Rows of all programs that fill the GPU once; keys are only split if no more programs than these write parts."""
    return max(PROCESSORS[capability] * tile.resident * tile.block_m for tile in tactics(capability).values())


def split(shape: Shape, tile: Tile, processors: int, splits: int | None = None) -> tuple[int, int]:
    """Number of splits that have keys to attend, and the key tiles of each.

    With `splits` given there are that many or, as tiles are whole, fewer. Without it as many as fill the GPU once, or
    one if combining the parts would take longer than splitting saves.
    """
    keys: int = key_tiles(shape, tile)
    each: int = tiles_per_split(shape, tile, MAX_SPLITS, processors) if splits is None else ceil_div(keys, splits)
    if splits is None and (keys - each) * tile.block_n < _COMBINE_KEYS:
        each = keys
    return ceil_div(keys, each), each


def attend_integers(
    shape: Shape, strides: Strides, bits: int, block: int, splits: int, per_split: Any
) -> dict[str, Any]:
    """The integer arguments of `attend`, in the order of its signature; `bits` are the `scale_bits` of the scale."""
    return {
        "rows": shape.rows,
        "cached": shape.cached,
        "slots": shape.slots,
        "group": shape.group,
        **vars(strides),
        "scale_bits": bits,
        "block": block,
        "splits": splits,
        "tiles_per_split": per_split,
    }


def attend_constants(size: int, tile: Tile, partial: bool, causal: bool) -> dict[str, Any]:
    """Compile-time constants of `attend`; `partial` for splits over keys, `causal` for blocks."""
    tiled = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    return {**_head(size), **tiled, "PARTIAL": partial, "CAUSAL": causal}


def combine_constants(size: int, splits: int) -> dict[str, Any]:
    """Compile-time constants of `combine`; splits are rounded up to a power of two, so that few variants suffice."""
    return {**_head(size), "BLOCK_M": COMBINE_ROWS, "SPLITS": 1 << (splits - 1).bit_length()}


def _head(size: int) -> dict[str, Any]:
    return {"HEAD": size, "HEAD_PADDED": padded_head(size)}
