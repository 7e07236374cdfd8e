"""A chat template is an untrusted program: it must end soon and use little memory."""

import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import write_tokenizer

from dpad.runtime import errors
from dpad.runtime.text.codec import TextCodec

USER = [{"role": "user", "content": "hi"}]
GROWN = "{% set ns = namespace(x=START, y=START) %}{% for i in range(99999) %}STEP{% endfor %}{{ END }}"


def grown(start: str, step: str, end: str = "ns.x|length") -> str:
    """A template that repeats `step` on a variable that begins as `start`."""
    return GROWN.replace("START", start).replace("STEP", f"{{% set ns.x = {step} %}}").replace("END", end)


NESTED = "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}" + (
    "{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
BIG = "('a' * 1000000)"
ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
    "loops that skip": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops without a body": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops of much text": "{% for i in range(99999) %}" + "x" * 99999 + "{% endfor %}",
    "loops that call themselves": "{% for x in [1] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros in pairs": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "callers": "{% macro m() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}{% for i in range(99999) %}x{% endfor %}{% endcall %}",
    "blocks": "{% block a %}{{ self.a() }}{% endblock %}",
    "text added": grown("'a'", "ns.x + ns.x"),
    "text joined": grown("'a'", "ns.x ~ ns.x"),
    "text written": GROWN.replace("START", "'a'")
    .replace("END", "1")
    .replace("STEP", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "text formatted": grown("'a'", "'{0}{0}'.format(ns.x)"),
    "text formatted by a map": grown("'a'", "'{a}{a}'.format_map({'a': ns.x})"),
    "text formatted as in C": grown("'a'", "'%s%s' % (ns.x, ns.x)"),
    "text formatted by a filter": grown("'a'", "'%s%s'|format(ns.x, ns.x)"),
    "text filtered": grown("'a'", "[ns.x, ns.x]|join"),
    "text replaced": grown("'aa'", "ns.x.replace('a', 'aa')"),
    "text replaced by a filter": grown("'aa'", "ns.x|replace('a', 'aa')"),
    "text replaced nowhere": grown("'aa'", "ns.x|replace('', 'aa')"),
    "text joined by itself": grown("'aa'", "ns.x.join(ns.x)"),
    "text escaped": grown("'<'", "(ns.x|e)|string|e"),
    "text as JSON": grown("'\\\\'", "ns.x|tojson"),
    "text of lists": grown("'\\\\'", "[ns.x]|string"),
    "text safe": grown("'a'|safe", "ns.x + ns.x"),
    "lists added": grown("[1]", "ns.x + ns.x"),
    "lists multiplied": grown("[1]", "ns.x * 2"),
    "lists of slices": grown("[]", f"ns.x + [{BIG}[1:]]"),
    "lists of upper case": grown("[]", f"ns.x + [{BIG}.upper()]"),
    "lists of letters": grown("[]", f"ns.x + [{BIG}|list]"),
    "lists of parts": grown("[]", f"ns.x + [{BIG}.split('a')]"),
    "lists summed": "{{ ([[1] * 999] * 9999)|sum(start=[])|length }}",
    "numbers": grown("3", "ns.x * ns.x", "1"),
    "numbers added": grown("2 ** 60000", "ns.x + ns.x", "1"),
    "tuples nested": grown("(1,)", "(ns.x,)", "{ns.x: 1}"),
    "lists nested": grown("[1]", "[ns.x]", "ns.x|tojson"),
    "lists nested and compared": GROWN.replace("START", "[1]")
    .replace("END", "ns.x == ns.y")
    .replace("STEP", "{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}"),
    "namespaces nested": grown("1", "namespace(x=ns.x, y=[ns.x, ns.x])", "ns.x"),
    "filters nested": grown("[1]", "ns.x|map('string')", "ns.x|first") * 9,
    "written": NESTED + "{{ ns.x }}",
    "written as JSON": NESTED + "{{ ns.x|tojson }}",
    "compared": NESTED + "{{ ns.x == ns.y }}",
    "looked for": NESTED + "{{ ns.x in [ns.y] }}",
    "tested": NESTED + "{{ ns.x is eq ns.y }}",
    "a key": NESTED + "{{ {ns.x: 1} }}",
    "an item": NESTED + "{{ {1: 2}[ns.x] }}",
    "an item that is missing": NESTED + "{{ {}[[ns.x]].y }}",
    "unique": NESTED + "{{ [ns.x]|unique|list }}",
    "sorted": NESTED + "{{ [ns.x, ns.y]|sort }}",
    "raised": NESTED + "{{ raise_exception(ns.x) }}",
    "changed": NESTED + "{% for i in [1, 2] %}{{ loop.changed([ns.x, ns.y][loop.index0]) }}{% endfor %}",
    "an attribute": NESTED + "{{ messages|attr(ns.x) }}",
    "power": "{{ 2 ** (10 ** 10) }}",
    "shift": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "many letters": "{{ 'a' * 10 ** 10 }}",
    "many elements": "{{ ([1] * 10 ** 10)|length }}",
    "padded": "{{ 'a'.ljust(10 ** 9) }}",
    "padded with zeros": "{{ 'a'.zfill(10 ** 9) }}",
    "centred": "{{ 'a'|center(10 ** 9) }}",
    "tabs": "{{ '\\t'.expandtabs(10 ** 9) }}",
    "a width": "{{ '{:>1000000000}'.format(1) }}",
    "a width by name": "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
    "a width in a tuple": "{{ '%*d' % (10 ** 9, 1) }}",
    "a width to the left": "{{ '%*d' % (-(10 ** 9), 1) }}",
    "a width as in C": "{{ '%1000000000d' % 1 }}",
    "places": "{{ '%.1000000000f'|format(1.0) }}",
    "a width of safe text": "{{ ('{:>1000000000}'|safe).format(1) }}",
    "a width found as an attribute": "{{ ('{:>1000000000}'|attr('format'))(1) }}",
    "indented": "{{ 'a\\nb'|indent(10 ** 9) }}",
    "indented by text": "{{ ('a\\n' * 99999)|indent('x' * 99999) }}",
    "JSON indented": "{{ [1, [2]]|tojson(indent=10 ** 9) }}",
    "JSON indented by text": "{{ ([1] * 99999)|tojson(indent='x' * 99999) }}",
    "JSON between": "{{ ([1] * 99999)|tojson(separators=('x' * 99999, ':')) }}",
    "batches": "{{ [1]|batch(10 ** 9, 'x')|list }}",
    "slices": "{{ [1]|slice(10 ** 9)|list }}",
    "rounded": "{{ 5|round(-(10 ** 9)) }}",
    "ranges": "{{ range(10 ** 9)|list }}",
    "words": "{{ lipsum(10 ** 9) }}",
    "letters exchanged": "{{ 'a'.translate({97: 'b' * 10 ** 9}) }}",
    "joined": f"{{{{ ([{BIG}] * 99999)|join }}}}",
    "sorted text": f"{{{{ ([{BIG}] * 99999)|sort|length }}}}",
    "the longest": f"{{{{ ([{BIG}] * 99999)|max|length }}}}",
    "searched in many": f"{{% set a = {BIG} + 'b' %}}{{{{ a in [{BIG} + 'c'] * 99999 }}}}",
    "searched from behind": f"{{{{ {BIG}.rfind('b' + 'a' * 500000) }}}}",
    "split from behind": f"{{{{ {BIG}.rsplit('b' + 'a' * 500000) }}}}",
    "wrapped": f"{{{{ {BIG}|wordwrap(1) }}}}",
    "links": "{{ ('http://a.b ' * 99999)|urlize }}",
    "tags": "{{ ('<!--' * 99999)|striptags }}",
    "printed": "{{ ([[1, 2]] * 99999)|pprint }}",
    "the time": "{{ strftime_now('%Y' * 9999999) }}",
    "cycles": f"{{% set c = cycler({BIG}) %}}{{% for i in range(99999) %}}{{{{ c.next() }}}}{{% endfor %}}",
}


@pytest.fixture
def open_with(tmp_path: Path) -> Callable[[str], TextCodec]:
    """A function that opens a tokenizer with a given template."""
    write_tokenizer(tmp_path)

    def opened(template: str) -> TextCodec:
        (tmp_path / "chat_template.jinja").write_text(template)
        return TextCodec.open(tmp_path)

    return opened


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_ends(open_with: Callable[[str], TextCodec], case: str) -> None:
    """Fails if a template runs for hours or takes gigabytes, so that the test hangs or runs out of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        written = open_with(ENDLESS[case]).render(USER)
    except errors.InvalidRequest as refused:
        assert len(str(refused)) < 1000 and "\n" not in str(refused)
    else:
        assert case in ("namespaces nested", "filters nested") and len(written) < 1_000_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000  # KiB


COMPILED = {
    "long": "x" * 3_000_000,
    "nested": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "a sum": "{{ 1" + "+1" * 60_000 + " }}",
    "many nodes": "{{ i }}" * 28_000,
    "names and branches": "".join(f"{{% set a{i}=1 %}}" for i in range(5000)) + "{% if 1 %}{% endif %}" * 4000,
    "a long number": "{{ " + "9" * 100_000 + " }}",
    "an unknown filter": "{{ 1|unknown }}",
}


@pytest.mark.parametrize("case", COMPILED)
def test_a_template_is_compiled_soon_or_not(open_with: Callable[[str], TextCodec], case: str) -> None:
    """Fails if compiling a template hangs or crashes because of its size, its depth or its constants."""
    with pytest.raises(errors.BundleError, match="the chat template"):
        open_with(COMPILED[case]).render(USER)


def test_nothing_is_computed_while_a_template_is_compiled(open_with: Callable[[str], TextCodec]) -> None:
    """Fails if a constant expression is evaluated at compile time, where no limit applies."""
    folded = ["'a' * 10 ** 11", "'a'|center(10 ** 11)", "2 ** 10 ** 10", "['a'] * 10 ** 11", "'%99999999999d' % 1"]
    branches = "".join(f"{{% if x %}}{{{{ {each} }}}}{{% endif %}}" for each in folded)
    assert open_with(branches + "w5").render(USER) == "w5"


def test_long_conversations_are_written(open_with: Callable[[str], TextCodec]) -> None:
    """Fails if the limit stops an ordinary template with the longest conversation that fits a canvas."""
    template = (
        "{% set ns = namespace(last=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' and not ns.last %}"
        "{% set ns.last = loop.index %}{% endif %}{% endfor %}{% for m in messages %}{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')|last }}{% endif %}{{ '<|' + m.role + '|>' + m.content|trim }}{% endfor %}"
    )
    codec = open_with(template)
    many = [{"role": "user", "content": "word " * 20}] * 4000
    assert codec.render(many).count("<|user|>") == 4000
    assert len(codec.render([{"role": "user", "content": "word " * 200_000}])) > 900_000


def test_threads_count_for_themselves(open_with: Callable[[str], TextCodec]) -> None:
    """Fails if threads that share a template share its step count, or one that is stopped stops the others."""
    codec = open_with(
        "{% for i in range(messages[0].content|int) %}{% for j in range(9999) %}{% endfor %}{% endfor %}w"
    )
    ended: list[str] = []

    def work(count: str) -> None:
        try:
            ended.append(codec.render([{"role": "user", "content": count}]))
        except errors.InvalidRequest:
            ended.append("stopped")

    threads = [threading.Thread(target=work, args=(count,)) for count in ["99", "99", "99", "99", "9999"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["stopped", "w", "w", "w", "w"]
