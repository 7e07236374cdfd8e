"""`Turns` chooses the sequences that share the next pass.

    turns = Turns(engine)
    members = turns.next(running)       # `running`: the longest not served first

The sequence that has waited longest leads a pass. Another sequence joins if padding the two together costs less than a
pass of its own (`Engine.pass_rows`): on a GPU that is true of all steps of cached blocks, on a CPU of steps of equal
shape. A refresh is larger than a step by a whole prompt, so the same rule separates the phases where mixing them would
cost. Allowing one phase per pass took a fifth more passes and saved no time (benchmarks/scheduling.py).

Each pass has a budget of query rows. A refresh larger than the budget waits: passes before it save the rows that they
do not use, until the savings suffice, for at most `PATIENCE` passes. So a sequence waits at most that long after all
sequences before it have led a pass.
"""

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.part import Part, Scheduled
from dpad.runtime.engines.base import Engine

PATIENCE = 16  # most passes by which a sequence larger than the budget is passed over
_SLOTS_A_ROW = 32  # attending this many slots costs about as much as one query row


class Seat:
    """A sequence in the scheduler, with its part for the next pass; `passes` had ended when it came."""

    def __init__(self, sequence: Scheduled, passes: int) -> None:
        self.sequence, self.passes = sequence, passes
        self.slots: NDArray[np.int64] | None = None
        self.part: Part
        self.rows = 0  # padded query rows
        self.weight = 0  # its cost in a pass, in query rows
        self.passed_over = 0
        self.since = perf_counter()
        self.cancelled = False
        self.held = False  # whether `Scheduler.step` is working on it outside the lock

    def prepare(self, part: Part, engine: Engine) -> None:
        """Set its next part, and compute what that costs."""
        self.part = part
        self.rows = engine.padded("Q", len(part.view.queries))
        self.weight = self.rows + len(part.view.cached) // _SLOTS_A_ROW


class Turns:
    """Chooses the passes of one engine."""

    def __init__(self, engine: Engine) -> None:
        contract = engine.contract
        self.engine = engine
        self.budget = contract.max_batch * max(engine.pass_rows, contract.block_length + contract.logit_shift)
        self._saved = 0  # query rows that passes left unused while a larger sequence waits

    def next(self, running: list[Seat]) -> list[Seat]:
        """The sequences of the next pass, at least one if any runs; moves them to the end of `running`."""
        if len(running) < 2:  # a shortcut: a lone request leaves the least time between its passes
            self._saved = 0
            for seat in running:
                seat.passed_over, seat.held = 0, True
            return running[:]
        room, first = self.budget + self._saved, running[0]
        late = first.passed_over >= PATIENCE
        leader = first if late else next((seat for seat in running if seat.rows <= room), first)
        members = self._led_by(leader, running)
        taken = len(members) * max(seat.rows for seat in members)
        self._saved = max(0, room - taken) if first not in members else 0
        for seat in running:
            seat.passed_over += 1
        for seat in members:
            seat.passed_over, seat.held = 0, True
            running.remove(seat)
        running.extend(members)
        return members

    def _led_by(self, leader: Seat, running: list[Seat]) -> list[Seat]:
        """`leader` and the sequences that can share its pass, the longest waiting first, within the budget."""
        members, longest, total = [leader], leader.weight, leader.weight
        room = max(min(self.budget + self._saved, self.engine.most_rows), leader.rows)
        for seat in running:
            if len(members) == self.engine.contract.max_batch:
                break
            if seat is leader:
                continue
            padded = (len(members) + 1) * max(longest, seat.weight)
            if padded <= total + seat.weight + self.engine.pass_rows and padded <= room:
                members.append(seat)
                longest, total = max(longest, seat.weight), padded
        return members
