"""Splitting the kernel into parts that fill a GPU, and the memory for them in every shape."""

from itertools import product

from dpad.plugins import tiling
from dpad.plugins.tiling import Shape


def test_parts_have_room_in_every_shape() -> None:
    """Fails if a shape writes more parts than memory is reserved for, for it or for the largest shape of an engine."""
    for capability, splits in product(tiling.CAPABILITIES, (2, 8, 16)):
        held = 0
        for rows in (*range(1, 3000), *range(3000, 40000, 37), 1 << 20):
            room = tiling.part_rows(rows, splits, capability)
            assert tiling.most_parts(rows, splits, capability) * rows <= room and held <= room
            held = room
        assert held == 1 << 20  # one part if the queries fill the GPU
    sizes = Shape(batch=1, rows=32, cached=1000, slots=2000, heads=32, kv_heads=32)
    for tile in tiling.tactics("9.0").values():
        programs = tiling.row_tiles(sizes, tile) * 32
        assert tiling.most_parts(32 * 32, 16, "9.0") >= 132 * tile.resident // programs
