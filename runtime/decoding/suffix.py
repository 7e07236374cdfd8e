"""`SuffixSchedule`: chooses the suffix positions that survive for a block (DPad, arXiv 2508.14148).

    kept = Gaussian(k=4, scale=2).keep(block=0, length=224, gen_length=256, rng=rng)

The masks behind a block are thinned once, before the block is decoded; all steps of the block use the same ones. A
schedule is pure: it maps (block, suffix length, random generator) to suffix distances, 0 being the first position
behind the block. Kept tokens keep their canvas positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.arguments import listed, reading
from dpad.runtime.checks import as_integer, as_number, is_integer, is_number
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import counted, shown


class SuffixSchedule(Protocol):
    """Chooses the suffix distances that take part while one block is decoded."""

    def check(self, gen_length: int, block_length: int) -> None:
        """Raise `InvalidRequest` if it cannot serve `gen_length` new tokens in blocks of `block_length`."""

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Kept distances, ascending, each in [0, length), for the `length` masks behind `block`."""


@dataclass(frozen=True)
class Full:
    """No dropout: the whole suffix takes part, as in the vanilla decoder."""

    def check(self, gen_length: int, block_length: int) -> None:
        """Raise nothing: `Full` serves every canvas."""

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """All `length` distances."""
        return np.arange(length)


@dataclass(frozen=True)
class Gaussian:
    """Dropout that grows with distance, within a sliding window (the published rule).

    A mask at distance i < window survives if u < scale · exp(-½ (k·i / (window-1))²) / √(2π), with u uniform in
    [0, 1); masks at i >= window are dropped. `k` is the number of standard deviations that the window spans ("sigma"
    in the authors' code). `window` None means min(256, gen_length). The defaults are those published for
    LLaDA-8B-Instruct on GSM8K.
    """

    k: float = 4.0
    scale: float = 2.0
    window: int | None = None

    @reading("a suffix schedule")
    def __post_init__(self) -> None:
        """Convert numbers to Python's own types; raises `InvalidRequest` for integers over 128 bits."""
        object.__setattr__(self, "k", as_number(self.k))
        object.__setattr__(self, "scale", as_number(self.scale))
        object.__setattr__(self, "window", as_integer(self.window, "window"))

    def check(self, gen_length: int, block_length: int) -> None:
        """Raise `InvalidRequest` for a window outside 1…gen_length or a negative parameter."""
        _check_window(self.window, gen_length)
        if not (is_number(self.k) and is_number(self.scale)):
            raise InvalidRequest(f"k {shown(self.k)} and scale {shown(self.scale)} must be numbers")
        if not (0 <= self.k < math.inf and 0 <= self.scale < math.inf):
            raise InvalidRequest(f"k {self.k} and scale {self.scale} must be finite and 0 or more")

    def probabilities(self, length: int, gen_length: int) -> NDArray[np.float64]:
        """Keep probabilities of the distances 0 … min(window, length)-1; values of 1 or more always keep."""
        window = _window(self.window, gen_length)
        distance = np.arange(min(window, length))
        z = self.k * distance / max(window - 1, 1)
        return np.asarray(self.scale * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Distances that pass the rejection test."""
        probabilities = self.probabilities(length, gen_length)
        return np.flatnonzero(rng.random(len(probabilities)) < probabilities)


@dataclass(frozen=True)
class Uniform:
    """A fixed number of positions drawn without replacement from the window."""

    count: int = 32
    window: int | None = None

    @reading("a suffix schedule")
    def __post_init__(self) -> None:
        """Convert numbers to Python's own types; raises `InvalidRequest` for integers over 128 bits."""
        object.__setattr__(self, "count", as_integer(self.count, "count"))
        object.__setattr__(self, "window", as_integer(self.window, "window"))

    def check(self, gen_length: int, block_length: int) -> None:
        """Raise `InvalidRequest` for a bad window or a count that the window cannot hold."""
        _check_window(self.window, gen_length)
        window = _window(self.window, gen_length)
        if not (is_integer(self.count) and 0 <= self.count <= window):
            raise InvalidRequest(f"count {shown(self.count)} must be an integer between 0 and the window {window}")

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`count` distances, or all of the window if it holds fewer."""
        window = min(_window(self.window, gen_length), length)
        return np.sort(rng.choice(window, size=min(self.count, window), replace=False))


NOTHING = Uniform(count=0)  # no suffix at all, as for block-causal models


@dataclass(frozen=True)
class Explicit:
    """Explicit suffix distances for each block, which reproduce any other schedule, the authors' included.

    `distances[b]` are the distances kept while block b is decoded (canvas position minus
    the first position behind the block). See `from_positions` for canvas positions.
    `prompt_length` and `block_length` are those of the request that the distances fit; None fits any. The last blocks
    may be left out if the text ended before them; if decoding reaches one of them, it stops with `InvalidRequest`.
    """

    distances: tuple[tuple[int, ...], ...]
    prompt_length: int | None = field(default=None, compare=False)
    block_length: int | None = field(default=None, compare=False)

    @reading("suffix distances")
    def __post_init__(self) -> None:
        """Convert lists of any kind to tuples; raises `InvalidRequest` for integers over 128 bits."""
        blocks = [listed(kept) for kept in listed(self.distances) or ()]
        if listed(self.distances) is not None and None not in blocks:
            found = tuple(tuple(as_integer(d, "a suffix distance") for d in kept or ()) for kept in blocks)
            object.__setattr__(self, "distances", found)
        for name in ("prompt_length", "block_length"):
            object.__setattr__(self, name, as_integer(getattr(self, name), name))

    @classmethod
    def from_positions(cls, positions: Sequence[Sequence[int]], prompt_length: int, block_length: int) -> "Explicit":
        """Make a schedule from canvas positions per block, for a prompt of `prompt_length` tokens.

        `positions[b]` may hold only positions behind block b, that is, prompt_length + (b + 1) · block_length and
        above. Requests with another prompt or block length are refused. Positions are integers of any kind, elements
        of arrays and tensors included; other values raise `InvalidRequest`.
        """
        return cls(*_distances(positions, prompt_length, block_length))

    def check_prompt(self, length: int) -> None:
        """Raise `InvalidRequest` if the positions are for a prompt of another length, in tokens."""
        if self.prompt_length is not None and not (is_integer(self.prompt_length) and self.prompt_length == length):
            raise InvalidRequest(
                f"the suffix positions are for a prompt of {shown(self.prompt_length)} tokens, and this prompt has "
                f"{length}, chat template and special tokens included: len(model.request(prompt).prompt_ids)"
            )

    @reading("suffix distances")
    def check(self, gen_length: int, block_length: int) -> None:
        """Raise `InvalidRequest` unless the distances of each block ascend and lie on the canvas."""
        if self.block_length is not None and not (is_integer(self.block_length) and self.block_length == block_length):
            raise InvalidRequest(
                f"the suffix positions are for blocks of {shown(self.block_length)} tokens, and block_length is "
                f"{block_length}"
            )
        given, blocks = self.distances, gen_length // block_length
        if not isinstance(given, tuple) or not all(isinstance(kept, tuple) for kept in given):
            raise InvalidRequest(f"suffix distances {shown(given)} must be lists of integers, one for each block")
        if len(given) > blocks:
            raise InvalidRequest(
                f"suffix positions are given for {counted(len(given), 'block')}, but gen_length {gen_length} has "
                f"only {blocks} of {block_length} tokens; leave the others out"
            )
        if blocks > 1 and not given:
            raise InvalidRequest("suffix positions are given for no block; give each a list, [] to keep nothing")
        for block, kept in enumerate(given):
            self._check_block(block, kept, gen_length - (block + 1) * block_length)

    def _check_block(self, block: int, kept: tuple[int, ...], length: int) -> None:
        """Check the distances against the `length` masks behind `block`.

        Messages use positions if `from_positions` made the schedule, else distances.
        """
        what, first = "distance", 0
        if self.prompt_length is not None and self.block_length is not None:
            what, first = "position", self.prompt_length + (block + 1) * self.block_length
        for distance in kept:
            if not is_integer(distance):
                raise InvalidRequest(f"suffix positions of block {block} are not all integers: {shown(distance)}")
            value = f"suffix {what} {first + distance} of block {block}"
            if not length:
                raise InvalidRequest(f"{value} is past the canvas end: nothing is behind the last block")
            if not 0 <= distance < length:
                side = "not behind the block" if distance < 0 else "past the canvas end"
                raise InvalidRequest(f"{value} is {side}; the suffix there is {first} to {first + length - 1}")
        for before, distance in pairwise(kept):
            if distance <= before:
                raise InvalidRequest(
                    f"suffix {what}s of block {block} must ascend, but {first + distance} follows {first + before}"
                )

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The given distances; none behind the last block."""
        if length and block >= len(self.distances):
            raise InvalidRequest(
                f"suffix positions are given for {counted(len(self.distances), 'block')} only, but decoding has "
                f"reached block {block}; give it a list too, [] to keep nothing"
            )
        return np.asarray(self.distances[block] if length else (), dtype=np.int64)


@reading("suffix positions")
def _distances(
    positions: object, prompt_length: int, block_length: int
) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Convert canvas positions to the fields of `Explicit`, in their order; raises `InvalidRequest`."""
    refused = "suffix positions must be lists of integers, one for each block, and lengths integers"
    prompt_length = as_integer(prompt_length, "prompt_length")
    block_length = as_integer(block_length, "block_length")
    blocks = listed(positions)
    if blocks is None:
        raise InvalidRequest(f"{refused}, not {shown(positions)}")
    if not (is_integer(prompt_length) and is_integer(block_length) and prompt_length >= 0 and block_length >= 1):
        raise InvalidRequest(
            f"{refused}; prompt_length {shown(prompt_length)} and block_length {shown(block_length)} are not possible"
        )
    distances = []
    for block, given in enumerate(blocks):
        kept = listed(given)
        if kept is None:
            raise InvalidRequest(f"{refused}; block {block} has {shown(given)}")
        kept = [as_integer(position, "a suffix position") for position in kept]
        if not all(map(is_integer, kept)):
            wrong = next(position for position in kept if not is_integer(position))
            raise InvalidRequest(f"{refused}; {shown(wrong)} of block {block} is not an integer")
        end = prompt_length + (block + 1) * block_length
        distances.append(tuple(position - end for position in kept))
    return tuple(distances), prompt_length, block_length


def _window(window: int | None, gen_length: int) -> int:
    """The window in tokens. The default is that of the published runs: at most 256, and at most `gen_length`."""
    return min(256, gen_length) if window is None else window


def _check_window(window: int | None, gen_length: int) -> None:
    if window is not None and not (is_integer(window) and 1 <= window <= gen_length):
        raise InvalidRequest(f"window {shown(window)} must be an integer between 1 and gen_length {gen_length}")
