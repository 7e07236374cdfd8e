"""Training text for a tiny model: seeded, templated word problems, long lists and short instructions.

    rng = random.Random(0)
    question, answer = sample(rng, "train")
    problems = heldout(seed=1, count=100)

Every answer follows from its question, word for word, so a small model can learn it; word
problems are worked line by line and end in `#### n`. The split is made by numbers: the
numbers of a question, in order, are hashed, and one hash in sixteen is held out. No
question of one split can occur in the other, whatever names and things it speaks of.
"""

import hashlib
import random
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

Split = Literal["train", "heldout"]
BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
SPECIAL = (BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", MASK)


class Example(NamedTuple):
    """One pair for the chat template: the user's turn and the assistant's."""

    question: str
    answer: str


HE = ("Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Omar", "Paul", "Ivan", "Noah")
SHE = ("Mia", "Ana", "Eva", "Zoe", "Lucy", "Nina", "Sara", "Rosa", "Emma", "Lily")
THINGS = ("apples", "books", "coins", "pens", "stamps", "cards", "shells", "marbles", "cookies", "stickers")
HOLDERS = (("box", "boxes"), ("bag", "bags"), ("shelf", "shelves"), ("jar", "jars"), ("basket", "baskets"))
GAINS = ("buys {n} more", "finds {n} more", "gets {n} from {friend}")
LOSSES = ("gives {n} to {friend}", "loses {n}", "sells {n}")
OPPOSITES = (("hot", "cold"), ("big", "small"), ("day", "night"), ("up", "down"), ("fast", "slow"))
ORDERS = {
    "the days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "the months of the year": "January, February, March, April, May, June, July, August, "
    "September, October, November, December",
    "the letters of the alphabet": ", ".join("abcdefghijklmnopqrstuvwxyz"),
    "the four seasons": "spring, summer, autumn, winter",
}


def _person(rng: random.Random) -> tuple[str, str]:
    """A name and its pronoun."""
    return (rng.choice(HE), "He") if rng.random() < 0.5 else (rng.choice(SHE), "She")


def _move(rng: random.Random, total: int) -> tuple[int, int]:
    """A signed change of 1..9 and the new total; it stays within 1..99, and mostly within 20."""
    gain = total < 3 or (total < 14 and rng.random() < 0.5) or (total < 80 and rng.random() < 0.2)
    change = rng.randint(1, 9) if gain else -rng.randint(1, min(9, total - 1))
    return change, total + change


def _sum(total: int, change: int) -> str:
    """`12 + 5 = 17` or `12 - 5 = 7`."""
    return f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change}"


def _story(rng: random.Random) -> Example:
    """Somebody has things, and two to four events change how many."""
    (name, pronoun), thing = _person(rng), rng.choice(THINGS)
    total = rng.randint(2, 12)
    told, worked = [f"{name} has {total} {thing}."], [f"{name} starts with {total} {thing}."]
    for step in range(rng.choice((1, 1, 2, 2, 2, 2, 3))):
        change, after = _move(rng, total)
        phrase = rng.choice(GAINS if change > 0 else LOSSES)
        event = f"{pronoun} {phrase.format(n=abs(change), friend=_person(rng)[0])}"
        told.append(f"{'Then ' + event[0].lower() + event[1:] if step else event}.")
        worked.append(f"{event}, so {_sum(total, change)}.")
        total = after
    asked = rng.choice((f"How many {thing} does {name} have now?", f"How many {thing} are left?"))
    return Example(" ".join([*told, asked]), "\n".join([*worked, f"#### {total}"]))


def _holders(rng: random.Random) -> Example:
    """So many boxes of so many things, then some more or fewer."""
    (name, _), thing, (one, many) = _person(rng), rng.choice(THINGS), rng.choice(HOLDERS)
    count, each = rng.randint(2, 5), rng.randint(2, 5)
    change, total = _move(rng, count * each)
    if change > 0:
        told = f"{name} has {count} {many} with {each} {thing} in each {one} and {change} more {thing}."
    else:
        told = f"Each {one} holds {each} {thing}. {name} has {count} {many} and takes out {-change} {thing}."
    first = f"In the {many}: {count} * {each} = {count * each}."
    last = f"{'In total' if change > 0 else 'Left'}: {_sum(count * each, change)}."
    asked = f"How many {thing} are there{' in total' if change > 0 else ' now'}?"
    return Example(f"{told} {asked}", f"{first}\n{last}\n#### {total}")


def _compare(rng: random.Random) -> Example:
    """Two people, one with more or fewer than the other; how many together."""
    first, second, thing = rng.choice(HE), rng.choice(SHE), rng.choice(THINGS)
    if rng.random() < 0.5:
        first, second = second, first
    own = rng.randint(2, 12)
    change, other = _move(rng, own)
    word = "more" if change > 0 else "fewer"
    asked = rng.choice(("How many do they have together?", f"How many {thing} do they have in total?"))
    question = f"{first} has {own} {thing}. {second} has {abs(change)} {word} {thing} than {first}. {asked}"
    total = own + other
    worked = f"{second} has {_sum(own, change)}.\nTogether they have {own} + {other} = {total}."
    return Example(question, f"{worked}\n#### {total}")


def _shopping(rng: random.Random) -> Example:
    """Two kinds of goods at two prices; what they cost, or what change is left."""
    (name, _), (one, two) = _person(rng), rng.sample(THINGS, 2)
    a, b, c, d = rng.randint(2, 4), rng.randint(2, 5), rng.randint(2, 4), rng.randint(2, 5)
    total = a * b + c * d
    question = f"{name} buys {a} {one} for {b} dollars each and {c} {two} for {d} dollars each."
    lines = [f"The {one} cost {a} * {b} = {a * b}.", f"The {two} cost {c} * {d} = {c * d}."]
    lines.append(f"Together: {a * b} + {c * d} = {total}.")
    if rng.random() < 0.3 and total < 95:
        paid = rng.randint(total + 1, min(99, total + 20))
        question += f" {name} pays {paid} dollars. How many dollars are left?"
        lines.append(f"Left: {_sum(paid, -total)}.")
        total = paid - total
    else:
        question += " How many dollars is that?"
    return Example(question, "\n".join([*lines, f"#### {total}"]))


def _arithmetic(rng: random.Random) -> Example:
    """A bare sum of one to three terms after the first."""
    total = rng.randint(2, 15)
    terms, lines = [str(total)], []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        change, after = _move(rng, total)
        terms.append(f"{'+' if change > 0 else '-'} {abs(change)}")
        lines.append(f"{_sum(total, change)}.")
        total = after
    form = rng.choice(("What is {}?", "Compute {}.", "Work out {} step by step."))
    return Example(form.format(" ".join(terms)), "\n".join([*lines, f"#### {total}"]))


def _count(rng: random.Random) -> Example:
    """Counting up or down, by ones or by a step, in a row or one number a line."""
    step = rng.choice((1, 1, 1, 1, 1, 1, 2, 5, 10))
    terms = rng.randint(4, min(12 if rng.random() < 0.9 else 60, 98 // step + 1))
    most = 99 - step * (terms - 1)
    low = rng.randint(0 if step > 1 else 1, most if rng.random() < 0.3 else min(most, 12))
    numbers = [low + step * i for i in range(terms)]
    down = rng.random() < 0.2
    if down:
        numbers.reverse()
    question = f"Count {'down ' if down else ''}from {numbers[0]} to {numbers[-1]}"
    question += f" by {step}" if step > 1 else ""
    lined = rng.random() < 0.15
    question += ", one number a line." if lined else "."
    return Example(question, ("\n" if lined else ", ").join(map(str, numbers)))


def _table(rng: random.Random) -> Example:
    """Regular long output: a times table, repeated addition or a numbered list."""
    form, n = rng.randrange(3), rng.randint(3, 9)
    if form == 0:
        k = rng.randint(2, 9)
        lines = [f"{i} * {k} = {i * k}" for i in range(1, n + 1)]
        return Example(f"Write the times table of {k} up to {n}.", "\n".join(lines))
    if form == 1:
        start, k = rng.randint(1, 20), rng.randint(2, 7)
        lines = [_sum(start + k * i, k) for i in range(n)]
        return Example(f"Start at {start} and add {k}, {n} times.", "\n".join(lines))
    n, thing = rng.randint(3, 25), rng.choice(THINGS)
    lines = [f"{i}. {thing}" for i in range(1, n + 1)]
    return Example(f"Write a numbered list with the word {thing} {n} times.", "\n".join(lines))


def _instruction(rng: random.Random) -> Example:
    """Short everyday requests; most have no numbers and so are in the training split only."""
    form = rng.randrange(5)
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
    what = rng.choice(list(ORDERS))
    return Example(f"List {what}.", ORDERS[what])


PROBLEMS: dict[str, Callable[[random.Random], Example]] = {
    "story": _story,
    "holders": _holders,
    "compare": _compare,
    "shopping": _shopping,
    "arithmetic": _arithmetic,
}
OTHERS: dict[str, Callable[[random.Random], Example]] = {
    "count": _count,
    "table": _table,
    "instruction": _instruction,
}
WEIGHTS = {"story": 32, "holders": 4, "compare": 6, "shopping": 2, "arithmetic": 26}
WEIGHTS |= {"count": 22, "table": 3, "instruction": 5}


def is_heldout(question: str) -> bool:
    """Whether the question's numbers, in order, fall in the held-out sixteenth; without numbers never."""
    numbers = re.findall(r"\d+", question)
    return bool(numbers) and hashlib.sha256(" ".join(numbers).encode()).digest()[0] < 16


def sample(rng: random.Random, split: Split, kind: str | None = None) -> Example:
    """One example of the split, of the named kind or of one drawn by `WEIGHTS`."""
    makers = PROBLEMS | OTHERS
    kind = kind or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    while True:
        example = makers[kind](rng)
        if is_heldout(example.question) == (split == "heldout"):
            return example


def heldout(seed: int, count: int, kinds: tuple[str, ...] = tuple(PROBLEMS)) -> list[Example]:
    """`count` held-out examples, the kinds in turn; by default word problems with a `####` line."""
    rng = random.Random(seed)
    return [sample(rng, "heldout", kinds[i % len(kinds)]) for i in range(count)]


def final_answer(text: str) -> str | None:
    """The number of an answer's last `#### n` line (strict match), or None."""
    found: list[str] = re.findall(r"^#### (-?\d+)$", text.strip(), flags=re.MULTILINE)
    return found[-1] if found else None


def is_right(answer: str, example: Example) -> bool:
    """Whether the number after `####` is right or, where there is none, the whole text is."""
    wanted = final_answer(example.answer)
    return final_answer(answer) == wanted if wanted else answer.strip() == example.answer


def build_tokenizer(seed: int, size: int = 640) -> Tokenizer:
    """Byte-level BPE learned from the corpus; each digit is its own token, any text encodes."""
    rng = random.Random(f"tokenizer {seed}")
    pairs = [sample(rng, "train") for _ in range(20000)]
    turns = [(f"user\n\n{question}", f"assistant\n\n{answer}") for question, answer in pairs]
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\p{N}| ?\p{L}+|[^\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for turn in turns for text in turn), trainer)
    return tokenizer


class Text:
    """The tokenizer and the chat template (jinja2 source) together: questions to ids, ids to answers."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self.tokenizer = tokenizer
        self.eos, self.mask = SPECIAL.index(EOS), SPECIAL.index(MASK)
        self._template = jinja2.Template(template)

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, question: str) -> list[int]:
        """Ids of the rendered chat of one user turn, up to where the answer begins."""
        chat = [{"role": "user", "content": question}]
        return self.encode(self._template.render(messages=chat, bos_token=BOS, add_generation_prompt=True))

    def decode(self, ids: list[int]) -> str:
        """The text of ids up to the first EOS."""
        decoded: str = self.tokenizer.decode(ids[: ids.index(self.eos)] if self.eos in ids else ids)
        return decoded
