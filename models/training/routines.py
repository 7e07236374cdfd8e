"""Training examples besides word problems: rule-based outputs of up to 900 tokens, sums, and everyday requests."""

import math
import random
from collections.abc import Callable

from dpad.models.training.problems import HE, MOST, SHE, THINGS, Example, move, sum_of

OPPOSITES = (("hot", "cold"), ("big", "small"), ("day", "night"), ("up", "down"), ("fast", "slow"))
WEEK = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"
ORDERS = {
    "the days of the week": WEEK,
    "the months of the year": "January, February, March, April, May, June, July, August, "
    "September, October, November, December",
    "the letters of the alphabet": ", ".join("abcdefghijklmnopqrstuvwxyz"),
    "the four seasons": "spring, summer, autumn, winter",
}
FACTS = {
    "Who are you?": "I am a small model that writes by filling in masks.",
    "What can you do?": "I can solve short word problems, count, and write lists.",
    "How many days are in a week?": "There are 7 days in a week.",
    "How many months are in a year?": "There are 12 months in a year.",
}


def _terms(rng: random.Random, least: int, most: int) -> int:
    """A number of terms with a uniform logarithm, so that short outputs are as common as long ones."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def count(rng: random.Random, least: int = 4, most: int = 300, small: float = 0.6) -> Example:
    """Counting up or down, by one or by a larger step, in one line or one number per line; two tokens per term."""
    step = rng.choice((1, 1, 1, 1, 2, 5, 10))
    terms = min(_terms(rng, least, most), 999 // step)
    low = rng.randint(0 if step > 1 else 1, 999 - step * (terms - 1))
    if rng.random() < small:  # small numbers, as in requests of people
        low = rng.randint(1, min(20, 999 - step * (terms - 1)))
    return _counted(rng, low, step, terms)


def crossing(rng: random.Random) -> Example:
    """Counting past a hundred; the last number sometimes has the same final digits as earlier ones."""
    step = rng.choice((1, 1, 2, 5, 10, 10))
    if rng.random() < 0.3:
        apart = 100 * rng.choice((1, 1, 2, 3))
        return _counted(rng, rng.randint(1, 999 - apart), step, apart // step + 1)
    terms = _terms(rng, 3, 9)
    return _counted(rng, 100 * rng.randint(1, 9) - step * rng.randint(1, terms - 1), step, terms)


def counting_down(rng: random.Random) -> Example:
    """Counting down from any number by any step, which is the hardest of the long outputs."""
    step = rng.choice((1, 1, 2, 5, 10))
    terms = min(_terms(rng, 3, 300), 999 // step)
    return _counted(rng, rng.randint(1, 999 - step * (terms - 1)), step, terms, down=1.0)


def _counted(rng: random.Random, low: int, step: int, terms: int, down: float = 0.2) -> Example:
    """Counting through `terms` numbers up from `low` or, with probability `down`, down to it."""
    numbers = [low + step * i for i in range(terms)]
    downward = rng.random() < down
    if downward:
        numbers.reverse()
    question = f"Count {'down ' if downward else ''}from {numbers[0]} to {numbers[-1]}"
    question += f" by {step}" if step > 1 else ""
    lined = rng.random() < 0.2
    return Example(
        question + (", one number a line." if lined else "."), ("\n" if lined else ", ").join(map(str, numbers))
    )


def _span(rng: random.Random, least: int, most: int, highest: int) -> tuple[int, int]:
    """First and last number, at most `highest`, of a list of `least` to `most` lines; half of them begin at 1."""
    terms = _terms(rng, least, most)
    first = 1 if rng.random() < 0.5 else rng.randint(1, highest + 1 - terms)
    return first, first + terms - 1


def numbered(rng: random.Random, least: int = 3, most: int = 190, highest: int = 190) -> Example:
    """A numbered list of one word; four tokens per line.

    Many questions also name the first number. A question with only one number is held out by that number alone, so the
    model would never see a list that ends there. With two numbers, every number ends lists in both splits.
    """
    (first, last), thing = _span(rng, least, most, highest), rng.choice(THINGS)
    asked = f"from {first} to {last}" if first > 1 or rng.random() < 0.5 else f"{last} times"
    lines = [f"{i}. {thing}" for i in range(first, last + 1)]
    return Example(f"Write a numbered list with the word {thing} {asked}.", "\n".join(lines))


def weeks(rng: random.Random) -> Example:
    """The days of several weeks, one week per line; 18 tokens per line."""
    first, last = _span(rng, 2, 50, 50)
    asked = f"weeks {first} to {last}" if first > 1 or rng.random() < 0.5 else f"{last} weeks"
    lines = [f"Week {i}: {WEEK}" for i in range(first, last + 1)]
    return Example(f"Write the days of {asked}, one week a line.", "\n".join(lines))


def sums(rng: random.Random) -> Example:
    """Repeated addition; 7 tokens per line."""
    k = rng.randint(2, 9)
    terms = rng.randint(3, 14)
    start = rng.randint(1, max(1, min(20, MOST - k * terms)))
    lines = [sum_of(start + k * i, k) for i in range(terms)]
    return Example(f"Start at {start} and add {k}, {terms} times.", "\n".join(lines))


def table(rng: random.Random) -> Example:
    """A times table; 7 tokens per line."""
    k, terms = rng.randint(2, 9), rng.randint(3, 10)
    lines = [f"{i} * {k} = {i * k}" for i in range(1, terms + 1)]
    return Example(f"Write the times table of {k} up to {terms}.", "\n".join(lines))


def arithmetic(rng: random.Random) -> Example:
    """A sum of two to five terms, or a product, without a story."""
    if rng.random() < 0.15:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        return Example(f"What is {a} * {b}?", f"{a} * {b} = {a * b}.\n#### {a * b}")
    total = rng.randint(2, MOST - 10)
    terms, lines = [str(total)], []
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        change = move(rng, total)
        if rng.random() < 0.3:  # two larger numbers, as in sums of amounts
            change = rng.randint(1, max(1, MOST - total)) if rng.random() < 0.5 else -rng.randint(0, total - 1)
            change = change or 1
        terms.append(f"{'+' if change > 0 else '-'} {abs(change)}")
        lines.append(f"{sum_of(total, change)}.")
        total += change
    form = rng.choice(("What is {}?", "Compute {}.", "Work out {} step by step."))
    return Example(form.format(" ".join(terms)), "\n".join([*lines, f"#### {total}"]))


def several(rng: random.Random) -> Example:
    """Independent sums and products, one per line; this kind has the most results per token."""
    lines = []
    for _ in range(_terms(rng, 2, 12)):
        a, b = rng.randint(1, MOST), rng.randint(1, 12)
        if rng.random() < 0.2:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            lines.append(f"{a} * {b} = {a * b}")
            continue
        if rng.random() < 0.4:
            b = rng.randint(1, MOST)
        if rng.random() < 0.3:
            a, b = b, a
        lines.append(sum_of(a, b if a <= b or rng.random() < 0.5 else -b))
    asked = ", ".join(line.split(" =")[0] for line in lines)
    return Example(f"Work out {asked}.", "\n".join(lines))


def _around(rng: random.Random) -> tuple[int, list[int]]:
    """A number and a list that may contain it; some in the list are close to it or share digits, some are repeated."""
    most = rng.choice((MOST, 999))
    wanted, other = rng.randint(1, most), rng.randint(1, most)
    steps = (1, 2, 10, *(100 * rng.randint(1, 9) for _ in range(6 if most > MOST else 0)))
    close = [number for step in steps for number in (wanted - step, wanted + step) if 1 <= number <= most]
    return wanted, [
        rng.choice((wanted, other, rng.choice(close), rng.randint(1, most))) for _ in range(_terms(rng, 2, 12))
    ]


def find(rng: random.Random) -> Example:
    """Say for each of several numbers whether it is the wanted one; three tokens per number.

    Counting needs the same comparison to stop. Here it is trained at every number, not once per answer.
    """
    wanted, numbers = _around(rng)
    told = [f"{number} {'yes' if number == wanted else 'no'}" for number in numbers]
    return Example(f"Find {wanted} in {', '.join(map(str, numbers))}.", ", ".join(told))


def until(rng: random.Random) -> Example:
    """Repeat several numbers up to the wanted one; this ends by the same decision as counting."""
    wanted, numbers = _around(rng)
    numbers = [*numbers, wanted, *numbers[::-1]][: rng.choice((8, 16))]
    numbers += [wanted] * (wanted not in numbers)
    end = numbers.index(wanted) + 1
    return Example(f"Read to {wanted} in {', '.join(map(str, numbers))}.", ", ".join(map(str, numbers[:end])))


def instruction(rng: random.Random) -> Example:
    """Short everyday requests; most have no numbers and so occur only in the training split."""
    form = rng.randrange(7)
    if form == 0:
        name = rng.choice(HE + SHE)
        return Example(f"Say hello to {name}.", f"Hello, {name}!")
    if form == 1:
        pair = rng.sample(rng.choice(OPPOSITES), 2)
        return Example(f"What is the opposite of {pair[0]}?", f"The opposite of {pair[0]} is {pair[1]}.")
    if form == 2:
        a, b = rng.sample(range(1, 100), 2)
        return Example(f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}.")
    if form == 3:
        word = rng.choice(THINGS)
        return Example(f"Spell the word {word}.", "-".join(word))
    if form == 4:
        days = WEEK.split(", ")
        day = rng.randrange(7)
        return Example(f"Which day comes after {days[day]}?", f"{days[(day + 1) % 7]} comes after {days[day]}.")
    if form == 5:
        question = rng.choice(list(FACTS))
        return Example(question, FACTS[question])
    what = rng.choice(list(ORDERS))
    return Example(f"List {what}.", ORDERS[what])


LONG: dict[str, Callable[[random.Random], Example]] = {"count": count, "numbered": numbered, "weeks": weeks}
SHORT: dict[str, Callable[[random.Random], Example]] = {
    "sums": sums,
    "table": table,
    "arithmetic": arithmetic,
    "several": several,
    "find": find,
    "until": until,
    "instruction": instruction,
    "counts": lambda rng: count(rng, 2, 12, small=0.1),  # these mainly teach where to stop
    "lists": lambda rng: numbered(rng, 2, 40, rng.choice((40, 110, 190))),
    "crossing": crossing,
    "down": counting_down,
}
