"""Random templates with all of Jinja's features are rendered, or refused soon with an error of this package."""

import random
from functools import partial
from pathlib import Path

from bundles import write_tokenizer
from fuzzing import Tally, fuzz

from dpad.runtime.text.codec import TextCodec

# Expressions for a text, a number, a list or any value; T, N, L and V are replaced by expressions of these kinds.
KINDS = {
    "T": "'a'|'<&>'|messages[0].content|ns.x|T + T|T * N|T ~ V|T[N:]|T[::-1]|T if V else T|'%s' % V|'%*d' % (N, N)|"
    "'{:{}}'.format(T, N)|'{0}{0}'.format(V)|T.upper()|T.replace(T, T)|T.join(L)|T.ljust(N)|T.strip(T)|T.center(N)|"
    "T.zfill(N)|T.expandtabs(N)|T.title()|f(V)|L!join(T)|T!e|T!replace(T, T)|T!indent(N)|T!center(N)|T!truncate(N)|"
    "T!wordwrap(N)|V!string|V!tojson|V!tojson(indent=N)|T!trim|T!title|T!urlize|V!pprint|T!safe|L!first|loop(L)",
    "N": "0|1|-1|7|99999|10 ** 9|N + N|N * N|N ** N|N // N|N % N|-N|T!length|L!length|T.count(T)|T.find(T)|T!int|L!sum|"
    "N!abs|N!round(N)|N!float|T.rfind(T)|L!max|T!wordcount|2 ** 60000",
    "L": "[]|messages|[1, 2]|ns.y|[V]|[V, V]|L + L|L * N|L[N:]|T.split(T)|T!list|L!sort|L!reverse!list|L!unique!list|"
    "L!map('string')!list|L!batch(N, V)!list|L!slice(N)!list|range(N)!list|L!select!list|T.rsplit(T)|"
    "L!map('replace', T, T)|T.partition(T)|{'k': V}!dictsort|L!groupby('role')!list|L!reject('in', L)",
    "V": "T|N|L|(V,)|(V, V)|{T: V}|V == V|V in L|not V|none|x|loop|ns|V[V]|V.x|T.partition(T)|"
    "{'k': V}.items()|V is in L|L!random|V!default(V)|V!attr(T)|cycler(V).next()|namespace(x=V)",
}
FILTERS = ("lower", "upper", "e", "trim", "title", "indent", "wordwrap", "center", "string", "tojson", "list", "join")


def expression(rng: random.Random, depth: int, kind: str = "V") -> str:
    """A random expression of a kind."""
    forms = KINDS[kind].split("|")
    form = rng.choice(forms if depth else [each for each in forms if not set("TNLV") & set(each)])
    parts = (expression(rng, depth - 1, sign) if sign in KINDS else {"!": "|"}.get(sign, sign) for sign in form)
    return f"({''.join(parts)})"


def statement(rng: random.Random, depth: int) -> str:
    """Random text, a value, or a statement with others inside."""
    value, listed = expression(rng, 4), expression(rng, 3, "L")
    kind = rng.randrange(9) if depth else rng.randrange(3)
    if kind < 2:
        return f"{{{{ {value} }}}}"
    if kind == 2:
        return f"{{% set ns.x = {expression(rng, 4, 'T')} %}}{{% set ns.y = {listed} %}}"
    inside = "".join(statement(rng, depth - 1) for _ in range(rng.randint(1, 3)))
    opened, closed = rng.choice(
        [
            (f"for x in {listed}", "endfor"),
            (f"for x in {listed} recursive", "endfor"),
            (f"for x in range({expression(rng, 3, 'N')}) if {expression(rng, 2)}", "endfor"),
            ("for x in range(99999)", "endfor"),
            (f"if {value}", "endif"),
            (f"macro f(x={value})", "endmacro"),
            ("set y", "endset"),
            ("generation", "endgeneration"),
            (f"filter {rng.choice(FILTERS)}", "endfilter"),
        ]
    )
    return f"{{% {opened} %}}{inside}{{% {closed} %}}"


def encode(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    """Encode messages with the tokenizer and template in `folder`."""
    return TextCodec.open(folder).encode_chat(messages)


@fuzz(short=100, long=5_000)
def test_whatever_a_template_does(tmp_path: Path, mutants: int, tally: Tally) -> None:
    """Fails if a random template raises another error, hangs, or writes without end."""
    write_tokenizer(tmp_path)
    for number in range(mutants):
        rng = random.Random(number)
        template = "{% set ns = namespace(x='a', y=[1]) %}" + "".join(statement(rng, 3) for _ in range(3))
        (tmp_path / "chat_template.jinja").write_text(template)
        said = [{"role": "user", "content": rng.choice(["hi", "<mask>", "<eos> a <mask>", "9"])}]
        ids = tally.attempt(f"{number}: {template}", partial(encode, tmp_path, said))
        assert ids is None or len(ids) < 10_000_000
