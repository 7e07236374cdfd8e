"""`Budget` limits the work of one rendering of a chat template, counted in steps.

    budget = Budget()
    budget.spend(budget.weigh(value))      # raises `Exhausted` when the budget is spent

A template is an untrusted program. A step is one operation of its code, one element of a list, or four characters that
are written or read. So a limit of steps limits both time and memory, and is the same on every machine.
"""

from typing import Any

STEPS = 4_000_000  # about half a second
CHARACTERS = 4  # characters per step
_DEPTH = 64  # most levels of nested lists and of calls
_BITS = 1 << 16  # most bits of an integer
NESTS: tuple[type, ...] = (list, tuple, dict, set, type({}.keys()), type({}.values()), type({}.items()))


class Exhausted(Exception):
    """A template exceeds a limit; the message, which begins with "it", says which."""


class Budget:
    """The remaining steps, and the depth of nested calls."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps = self._left = steps
        self._calls = 0

    def spend(self, steps: int) -> None:
        """Count `steps` more; raises `Exhausted` if fewer are left."""
        self._left -= steps
        if self._left < 0:
            raise Exhausted(
                f"it takes more than {self.steps:,} steps (a step is an operation or {CHARACTERS} characters)"
            )

    def enter(self) -> None:
        """Enter a call of a macro or loop; raises `Exhausted` if calls are nested too deep."""
        self._calls += 1
        if self._calls > _DEPTH:
            raise Exhausted(f"its macros or loops call one another more than {_DEPTH} deep")

    def leave(self) -> None:
        """Leave a call."""
        self._calls -= 1

    def weigh(self, value: Any) -> int:
        """Steps to read all of the data `value`; counting stops when they exceed the remaining steps."""
        return self._weigh(value, _DEPTH)

    def weigh_text(self, value: Any) -> int:
        """Steps to write `value` as text. Text within lists is escaped, which takes up to 12 times the characters."""
        return self.weigh(value) * (12 if isinstance(value, NESTS) else 1)

    def _weigh(self, value: Any, depth: int) -> int:
        if isinstance(value, str):
            return 1 + len(value) // CHARACTERS
        if isinstance(value, int):
            check_bits(value.bit_length())
            return 1
        if not isinstance(value, NESTS):
            return 1
        if not depth:
            raise Exhausted(f"its lists are nested deeper than {_DEPTH}")
        if isinstance(value, dict):
            value = value.items()
        total = 1
        for part in value:
            total += 4 + self._weigh(part, depth - 1)
            if total > self._left:
                break
        return total


def check_bits(bits: int) -> None:
    """Raise `Exhausted` for an integer longer than any text needs."""
    if bits > _BITS:
        raise Exhausted(f"it computes integers of more than {_BITS:,} bits")
