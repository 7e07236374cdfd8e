"""Templates drawn from all that Jinja has: each is rendered or refused, soon, and with an error of this package."""

import random
from functools import partial
from pathlib import Path

from bundles import write_tokenizer
from fuzzing import Tally, fuzz

from dpad.runtime.text import TextCodec

ATOMS = [
    "1",
    "0",
    "'a'",
    "messages",
    "messages[0].content",
    "ns.x",
    "ns.y",
    "10 ** 9",
    "99999",
    "[]",
    "'<&>'",
    "none",
    "x",
]
UNARY = ["-{}", "not {}", "({},)", "[{}]", "{{'k': {}}}", "{}[1:]", "{}[::-1]", "{}.x", "{}[0]", "loop({})", "f({})"]
BINARY = [
    "{} + {}",
    "{} * {}",
    "{} ** {}",
    "{} % {}",
    "{} ~ {}",
    "{} == {}",
    "{} in {}",
    "({}, {})",
    "{}[{}]",
    "{} - {}",
]
FILTERS = (
    "abs attr batch capitalize center count default dictsort e escape filesizeformat first float forceescape format "
    "groupby indent int items join last length list lower map max min pprint random reject rejectattr replace reverse "
    "round safe select selectattr slice sort string striptags sum title tojson trim truncate unique upper urlencode "
    "urlize wordcount wordwrap xmlattr"
)
METHODS = (
    "capitalize center count endswith expandtabs find format format_map get index items join keys ljust lower "
    "partition removeprefix replace rfind rjust rpartition rsplit split splitlines startswith strip title upper "
    "values zfill append encode translate to_bytes __class__ copy"
)


def expression(rng: random.Random, depth: int) -> str:
    """One that may do anything."""
    if depth == 0 or rng.random() < 0.1:
        return rng.choice(ATOMS)

    def part() -> str:
        return expression(rng, depth - 1)

    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(UNARY).format(part())
    if kind == 1:
        return f"({rng.choice(BINARY).format(part(), part())})"
    given = ", ".join(part() for _ in range(rng.randrange(3)))
    if kind == 2:
        return f"{part()}|{rng.choice(FILTERS.split())}({given})"
    if kind == 3:
        return f"({part()}).{rng.choice(METHODS.split())}({given})"
    return f"({part()} if {part()} else {part()})"


def statement(rng: random.Random, depth: int) -> str:
    """Text, a value, or a statement with others inside."""
    value = expression(rng, 3)
    kind = rng.randrange(9) if depth else rng.randrange(3)
    if kind < 2:
        return f"{{{{ {value} }}}}"
    if kind == 2:
        return f"{{% set ns.{rng.choice('xy')} = {value} %}}"
    inside = "".join(statement(rng, depth - 1) for _ in range(rng.randint(1, 3)))
    opened, closed = rng.choice(
        [
            (f"for x in {value}", "endfor"),
            (f"for x in {value} recursive", "endfor"),
            (f"for x in range({value}) if {expression(rng, 2)}", "endfor"),
            ("for x in range(99999)", "endfor"),
            (f"if {value}", "endif"),
            (f"macro f(x={value})", "endmacro"),
            ("set y", "endset"),
            ("generation", "endgeneration"),
            (f"filter {rng.choice(FILTERS.split())}", "endfilter"),
        ]
    )
    return f"{{% {opened} %}}{inside}{{% {closed} %}}"


def encode(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    """What a bundle's tokenizer is asked for."""
    return TextCodec.open(folder).encode_chat(messages)


@fuzz(short=100, long=20_000)
def test_whatever_a_template_does(tmp_path: Path, mutants: int, tally: Tally) -> None:
    """Fails if a template that is drawn from all that Jinja has raises, hangs, or writes without end."""
    write_tokenizer(tmp_path)
    for number in range(mutants):
        rng = random.Random(number)
        template = "{% set ns = namespace(x='a', y=[1]) %}" + "".join(statement(rng, 3) for _ in range(3))
        (tmp_path / "chat_template.jinja").write_text(template)
        said = [{"role": "user", "content": rng.choice(["hi", "<mask>", "<eos> a <mask>", "9"])}]
        ids = tally.attempt(f"{number}: {template}", partial(encode, tmp_path, said))
        assert ids is None or len(ids) < 10_000_000
