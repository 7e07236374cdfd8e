"""`Budget`: what one rendering of a chat template may take, counted in steps as it goes.

    budget = Budget()
    budget.spend(budget.weigh(value))      # raises `Exhausted` when all is spent

A template is a program from a stranger. A step is one operation of its code, an element of a list, or four characters
that are made or looked at; so a limit of steps is one of time and of memory, and the same on every machine.
"""

from typing import Any

STEPS = 4_000_000  # about half a second
CHARACTERS = 4  # of a step
_DEPTH = 64  # of nested lists and of calls
_BITS = 1 << 16  # of whole numbers
NESTS: tuple[type, ...] = (list, tuple, dict, set, type({}.keys()), type({}.values()), type({}.items()))


class Exhausted(Exception):
    """A template does more than it may; says what."""


class Budget:
    """Steps that are left, and how deep calls are nested."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps = self._left = steps
        self._calls = 0

    def spend(self, steps: int) -> None:
        """Count some more; raises `Exhausted`."""
        self._left -= steps
        if self._left < 0:
            raise Exhausted(
                f"it takes more than {self.steps:,} steps (a step is an operation or {CHARACTERS} characters)"
            )

    def enter(self) -> None:
        """One macro or loop calls another; raises `Exhausted` where that has no end."""
        self._calls += 1
        if self._calls > _DEPTH:
            raise Exhausted(f"its macros or loops call one another more than {_DEPTH} deep")

    def leave(self) -> None:
        """The call is over."""
        self._calls -= 1

    def weigh(self, value: Any) -> int:
        """Steps to read all of `value`, which is data; stops where they are more than what is left."""
        return self._weigh(value, _DEPTH)

    def weigh_text(self, value: Any) -> int:
        """Steps to write `value` as text: what stands in lists is escaped, a character as up to 12."""
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
    """Raises `Exhausted` for a whole number longer than any text needs."""
    if bits > _BITS:
        raise Exhausted(f"it makes whole numbers of more than {_BITS:,} bits")
