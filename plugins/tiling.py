"""How the kernel is cut into programs: tile sizes, splits over keys, and its integer arguments.

    tile = tile_for(128 * group, "9.0")
    numbers = attend_integers(shape, Strides.contiguous(shape), scale_bits(0.125), block, splits, per_split)

One definition for every launcher: numbers here, symbolic shapes in a TensorRT plugin. Needs neither torch nor Triton.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpad.plugins.errors import AttentionError

CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
PROCESSORS = {"8.0": 108, "8.6": 84, "8.9": 142, "9.0": 132, "10.0": 148, "12.0": 170}  # SMs of the largest part
DTYPES = ("float16", "bfloat16")
HEAD_SIZES = (64, 96, 128)  # what is compiled ahead of time and tested; multiples of 16 up to 128 work
MAX_SPLITS = 16
PLUGIN_SPLITS = 8  # ... of TensorRT's plugins, whose parts are tensors of the network
COMBINE_ROWS = 4  # rows of one program of `combine`: one load of 16 bytes a thread and split, with heads of 128
COMBINE_WARPS = 4
MAX_REGISTERS = 255  # a thread: said aloud, or ptxas spills a few to fit one more program on an SM

_COMBINE_KEYS = 256  # about as long as `combine` takes on an H100, in keys that a program attends


@dataclass(frozen=True)
class Tile:
    """Queries and keys of one program's tile, its warps, its pipeline, and how many programs an SM holds.

    With `stages` 3 the rows of one tile of keys are in flight while another tile is used.
    """

    block_m: int
    block_n: int = 64
    warps: int = 4
    stages: int = 3
    resident: int = 1


# On an H100, of 40 tiles (16 to 128 query rows, 32 to 128 keys, 4 and 8 warps, 2 to 4 stages) and 7 numbers of splits,
# the first of these was the fastest or within 1 % of it at the 12 shapes of steps that had more than 640 keys; few
# query rows gain nothing from a smaller one. The second reads half as many bytes a product; the builder of an engine
# times it. Blackwell's data-centre parts hold a product outside of registers as well (tcgen05), so they have the same
# two; nothing was measured there.
_LARGE = (Tile(64, 128), Tile(128, warps=8))
# Elsewhere larger tiles spill. Not measured.
_SMALL = (Tile(32), Tile(64, 32))
_TILES = {"8.0": (Tile(32, resident=2), Tile(64, 32, resident=2)), "9.0": _LARGE, "10.0": _LARGE, "10.3": _LARGE}
# In less than 48 KiB of shared memory, which a program gets without its launcher asking for more. Not measured.
_MODEST = Tile(32, 32, resident=2)


def tiles(capability: str) -> tuple[Tile, ...]:
    """The tiles that are launched on a compute capability ("9.0")."""
    return _TILES.get(capability, _SMALL)


def tactics(capability: str, causal: bool = False) -> dict[int, Tile]:
    """The tiles among which TensorRT's builder chooses by time: `tiles`, and one that fits wherever a kernel does.

    With blocks, `causal`, those whose registers suffice for their mask. A number means the same tile in either case:
    timings may be kept under it.
    """
    choice = tiles(capability)
    every = dict(enumerate((*choice, _MODEST), start=1))
    return {number: tile for number, tile in every.items() if not (causal and choice is _LARGE and tile is choice[0])}


def tile_for(rows: int, capability: str, causal: bool = False) -> Tile:
    """The tile for `rows` = Q · H / G query rows of one key/value head.

    With blocks, `causal`, it is the last one: their mask takes registers that the first tile has not left.
    """
    first, last = choice = tiles(capability)
    return first if not causal and (choice is _LARGE or rows <= first.block_m) else last


def padded_head(size: int) -> int:
    """The power of two that holds a head of D elements."""
    return 1 << (size - 1).bit_length()


def scale_bits(scale: float) -> int:
    """`scale` · log2(e) as the integer of its float32 bits: plugins pass nothing but integers.

    Raises `AttentionError` for a scale that is not above 0: the kernel takes the largest score before it scales.
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
    """What shapes are computed with: Python's numbers, or a TensorRT plugin's symbolic ones.

    `fits(total, size)` is how many whole `size` fit into the number `total`.
    """

    ceil_div: Callable[[Any, Any], Any] = ceil_div
    largest: Callable[[Any, Any], Any] = max
    smallest: Callable[[Any, Any], Any] = min
    fits: Callable[[int, Any], Any] = int.__floordiv__


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


def key_tiles(shape: Shape, tile: Tile, number: Arithmetic = NUMBERS) -> Any:
    """Tiles of cached keys, and of new ones."""
    return number.ceil_div(shape.cached, tile.block_n) + number.ceil_div(shape.rows, tile.block_n)


def tiles_per_split(shape: Shape, tile: Tile, splits: int, processors: int, number: Arithmetic = NUMBERS) -> Any:
    """Key tiles of one split, so that at most `splits` of them fill a GPU of `processors` SMs once.

    With enough queries to fill it, one split takes all keys and the others are idle.
    """
    keys = key_tiles(shape, tile, number)
    programs = row_tiles(shape, tile, number) * shape.kv_heads * shape.batch
    room = number.largest(number.fits(processors * tile.resident, programs), 1)
    return number.largest(number.ceil_div(keys, splits), number.ceil_div(keys, room))


def most_parts(rows: Any, splits: int, capability: str, number: Arithmetic = NUMBERS) -> Any:
    """Splits of which some tactic has work on a full GPU, `splits` at most, for `rows` = B · Q · H of the output.

    It is the same for all tactics: `attend_parts` and `combine_parts` agree on it, whichever tile was chosen.
    """
    return number.largest(number.smallest(number.fits(_part_rows(capability), rows), splits), 1)


def part_rows(rows: Any, splits: int, capability: str, number: Arithmetic = NUMBERS) -> Any:
    """Rows of D that `most_parts` parts of `rows` = B · Q · H take at most.

    It never falls as a shape grows, so what is set aside for the largest shape holds every other one.
    """
    return number.largest(number.smallest(rows * splits, _part_rows(capability)), rows)


def _part_rows(capability: str) -> int:
    """Rows of all programs that fill the GPU once: more than one part is written by no more than those."""
    return max(PROCESSORS[capability] * tile.resident * tile.block_m for tile in tactics(capability).values())


def split(shape: Shape, tile: Tile, processors: int, splits: int | None = None) -> tuple[int, int]:
    """How many splits have keys to attend, and the key tiles of each: `splits` or, rounded by tiles, fewer.

    Without a number, as many as fill the GPU once; or one, if adding parts up would take longer than what it spares.
    """
    keys: int = key_tiles(shape, tile)
    each: int = tiles_per_split(shape, tile, MAX_SPLITS, processors) if splits is None else ceil_div(keys, splits)
    if splits is None and (keys - each) * tile.block_n < _COMBINE_KEYS:
        each = keys
    return ceil_div(keys, each), each


def attend_integers(
    shape: Shape, strides: Strides, bits: int, block: int, splits: int, per_split: Any
) -> dict[str, Any]:
    """The integer arguments of `attend`, in its order; `bits` are the `scale_bits` of the scale."""
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
    """What is compiled into `attend`; `partial` for splits over keys, `causal` for blocks."""
    tiled = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    return {**_head(size), **tiled, "PARTIAL": partial, "CAUSAL": causal}


def combine_constants(size: int, splits: int) -> dict[str, Any]:
    """What is compiled into `combine`: the next power of two, so that few variants serve all numbers of splits."""
    return {**_head(size), "BLOCK_M": COMBINE_ROWS, "SPLITS": 1 << (splits - 1).bit_length()}


def _head(size: int) -> dict[str, Any]:
    return {"HEAD": size, "HEAD_PADDED": padded_head(size)}
