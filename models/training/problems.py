"""Word problems of two to four steps, whose answers have one line per step and end with `#### n`.

A problem has one of several forms, each a pair of an opening and a question. One pair of each kind is held out of
training, so that a model can be measured on a combination that it has not seen.
"""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Example(NamedTuple):
    """A user's turn and the assistant's answer, for the chat template."""

    question: str
    answer: str


class Forms(NamedTuple):
    """Draws the form of a problem: any pair except the held-out one, or only the held-out one."""

    rng: random.Random
    heldout: bool

    def pick(self, openings: Sequence[str], questions: Sequence[str]) -> tuple[str, str]:
        """An opening and a question; the last opening with the last question is the held-out form."""
        last = (openings[-1], questions[-1])
        if self.heldout:
            return last
        while (pair := (self.rng.choice(openings), self.rng.choice(questions))) == last:
            pass
        return pair


HE = ("Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Omar", "Paul", "Ivan", "Noah")
SHE = ("Mia", "Ana", "Eva", "Zoe", "Lucy", "Nina", "Sara", "Rosa", "Emma", "Lily")
THINGS = ("apples", "books", "coins", "pens", "stamps", "cards", "shells", "marbles", "cookies", "stickers")
HOLDERS = (("box", "boxes"), ("bag", "bags"), ("shelf", "shelves"), ("jar", "jars"), ("basket", "baskets"))
GAINS = ("buys {n} more", "finds {n} more", "gets {n} from {friend}", "picks up {n} more")
LOSSES = ("gives {n} to {friend}", "loses {n}", "sells {n}", "throws away {n}")
LATER = ("Then", "Later", "After that")
MOST = 99  # no number of a word problem is larger


def person(rng: random.Random) -> tuple[str, str]:
    """A name and its pronoun."""
    return (rng.choice(HE), "he") if rng.random() < 0.5 else (rng.choice(SHE), "she")


def move(rng: random.Random, total: int) -> int:
    """A signed change of size 1 to 15 that keeps the total between 1 and `MOST`."""
    gain = total < 4 or (total <= MOST - 15 and rng.random() < 0.5)
    return rng.randint(1, 15) if gain else -rng.randint(1, min(15, total - 1))


def sum_of(total: int, change: int) -> str:
    """A sum as text: `12 + 5 = 17` or `12 - 5 = 7`."""
    return f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change}"


def _events(rng: random.Random, total: int, count: int, pronoun: str, later: bool) -> tuple[list[str], list[int]]:
    """Sentences that change a total, and the signed changes; `later` if they follow another sentence."""
    told, changes = [], []
    for index in range(count):
        change = move(rng, total)
        phrase = rng.choice(GAINS if change > 0 else LOSSES).format(n=abs(change), friend=person(rng)[0])
        start = f"{rng.choice(LATER)} {pronoun}" if later or index else pronoun.capitalize()
        told.append(f"{start} {phrase}.")
        changes.append(change)
        total += change
    return told, changes


def _worked(name: str, thing: str, total: int, changes: list[int]) -> list[str]:
    """The answer: one line for each change, and the final line."""
    lines = []
    for change in changes:
        lines.append(f"{name} has {sum_of(total, change)} {thing}.")
        total += change
    return [*lines, f"#### {total}"]


def story(rng: random.Random, forms: Forms) -> Example:
    """Somebody has things, and two to four events change how many."""
    (name, pronoun), thing, total = person(rng), rng.choice(THINGS), rng.randint(4, 80)
    opening, asked = forms.pick(
        ("{name} has {n} {thing}.", "{name} starts with {n} {thing}.", "There are {n} {thing} in the bag of {name}."),
        ("How many {thing} does {name} have now?", "How many {thing} are left?", "How many {thing} is that now?"),
    )
    told, changes = _events(rng, total, rng.choice((2, 2, 3, 3, 4)), pronoun, later=False)
    words = {"name": name, "thing": thing, "n": total}
    question = " ".join([opening.format(**words), *told, asked.format(**words)])
    return Example(question, "\n".join(_worked(name, thing, total, changes)))


def groups(rng: random.Random, forms: Forms) -> Example:
    """So many boxes of so many things, then one to three events."""
    (name, pronoun), thing, (one, many) = person(rng), rng.choice(THINGS), rng.choice(HOLDERS)
    count, each = rng.randint(2, 9), rng.randint(2, 9)
    opening, asked = forms.pick(
        (
            "{name} has {count} {many} with {each} {thing} in each {one}.",
            "Each {one} holds {each} {thing}. {name} has {count} {many}.",
        ),
        ("How many {thing} does {name} have now?", "How many {thing} are there now?"),
    )
    told, changes = _events(rng, count * each, rng.choice((1, 1, 2, 2, 3)), pronoun, later=False)
    words = {"name": name, "thing": thing, "one": one, "many": many, "count": count, "each": each}
    first = f"The {many} hold {count} * {each} = {count * each} {thing}."
    question = " ".join([opening.format(**words), *told, asked.format(**words)])
    return Example(question, "\n".join([first, *_worked(name, thing, count * each, changes)]))


def daily(rng: random.Random, forms: Forms) -> Example:
    """So many things a day for so many days, then one or two events."""
    (name, pronoun), thing = person(rng), rng.choice(THINGS)
    days, each = rng.randint(2, 9), rng.randint(2, 9)
    opening, asked = forms.pick(
        (
            "{name} collects {each} {thing} every day for {days} days.",
            "For {days} days {name} collects {each} {thing} a day.",
        ),
        ("How many {thing} does {name} have?", "How many {thing} does {name} have at the end?"),
    )
    told, changes = _events(rng, days * each, rng.choice((1, 1, 2)), pronoun, later=True)
    words = {"name": name, "thing": thing, "each": each, "days": days}
    first = f"In {days} days {name} collects {days} * {each} = {days * each} {thing}."
    question = " ".join([opening.format(**words), *told, asked.format(**words)])
    return Example(question, "\n".join([first, *_worked(name, thing, days * each, changes)]))


def compare(rng: random.Random, forms: Forms) -> Example:
    """Two or three people, each with more or fewer things than the one before; how many together."""
    people = rng.sample(HE + SHE, rng.choice((2, 2, 3)))
    thing, own = rng.choice(THINGS), rng.randint(3, 20)
    opening, asked = forms.pick(
        ("{name} has {n} {thing}.", "There are {n} {thing} in the bag of {name}."),
        ("How many {thing} do they have together?", "How many {thing} do they have in total?"),
    )
    told, worked, owned = [opening.format(name=people[0], n=own, thing=thing)], [], [own]
    for before, name in pairwise(people):
        change = rng.randint(1, 7) if owned[-1] < 4 or rng.random() < 0.5 else -rng.randint(1, min(7, owned[-1] - 1))
        told.append(f"{name} has {abs(change)} {'more' if change > 0 else 'fewer'} {thing} than {before}.")
        worked.append(f"{name} has {sum_of(owned[-1], change)} {thing}.")
        owned.append(owned[-1] + change)
    total = own
    for other in owned[1:]:
        worked.append(f"Together that is {sum_of(total, other)} {thing}.")
        total += other
    return Example(" ".join([*told, asked.format(thing=thing)]), "\n".join([*worked, f"#### {total}"]))


def shopping(rng: random.Random, forms: Forms) -> Example:
    """Two kinds of goods at two prices; what they cost, or what is left of the money."""
    (name, pronoun), (one, two) = person(rng), rng.sample(THINGS, 2)
    a, b, c, d = (rng.randint(2, 6) for _ in range(4))
    total = a * b + c * d
    opening, asked = forms.pick(
        (
            "{name} buys {a} {one} for {b} dollars each and {c} {two} for {d} dollars each.",
            "At the shop {name} buys {a} {one} at {b} dollars each and {c} {two} at {d} dollars each.",
        ),
        ("How many dollars is that?", "What does {name} pay in dollars?"),
    )
    words = {"name": name, "one": one, "two": two, "a": a, "b": b, "c": c, "d": d}
    question = opening.format(**words)
    lines = [f"The {one} cost {a} * {b} = {a * b} dollars.", f"The {two} cost {c} * {d} = {c * d} dollars."]
    lines.append(f"Together that is {sum_of(a * b, c * d)} dollars.")
    if rng.random() < 0.4:
        paid = rng.randint(total + 1, MOST)
        question += f" {pronoun.capitalize()} had {paid} dollars. How many dollars are left?"
        lines.append(f"There are {sum_of(paid, -total)} dollars left.")
        total = paid - total
    else:
        question += f" {asked.format(**words)}"
    return Example(question, "\n".join([*lines, f"#### {total}"]))


PROBLEMS: dict[str, Callable[[random.Random, Forms], Example]] = {
    "story": story,
    "groups": groups,
    "daily": daily,
    "compare": compare,
    "shopping": shopping,
}
