"""Chat templates render as in transformers, and a user's text stays text."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CONVERSATIONS, TEMPLATES
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dpad.export.hub import resolve
from dpad.runtime import errors
from dpad.runtime.text.codec import TextCodec

Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of an embedded model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("tiny-dream").directory / name, folder)
    return folder


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer in transformers."""
    return AutoTokenizer.from_pretrained(folder)


def codec(folder: Path, template: str) -> TextCodec:
    """The tokenizer with `template`."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    return TextCodec.open(folder)


def expected(oracle: PreTrainedTokenizerFast, template: str, messages: Messages, **more: Any) -> str | None:
    """The text rendered by transformers, or None if the template raises an error."""
    try:
        written = oracle.apply_chat_template(messages, chat_template=template, tokenize=False, **more)
    except Exception:
        return None
    assert isinstance(written, str)
    return written


def special(ids: list[int], oracle: PreTrainedTokenizerFast) -> list[int]:
    """The special tokens among `ids`."""
    return [number for number in ids if number in oracle.added_tokens_decoder]


def plain(messages: Messages) -> Messages:
    """`messages` without the special tokens that they spell."""
    return [{key: value.replace("<|", "(|") for key, value in message.items()} for message in messages]


def agrees(
    ours: TextCodec, oracle: PreTrainedTokenizerFast, template: str, messages: Messages, *, looks: bool = False
) -> None:
    """Assert that text and ids equal those of transformers, except that special tokens in a message are text.

    `looks` says that the template reads such tokens.
    """
    for prompted in (True, False):
        wanted = expected(oracle, template, messages, add_generation_prompt=prompted)
        if wanted is None:
            with pytest.raises(errors.InvalidRequest):
                ours.render(messages, add_generation_prompt=prompted)
        else:
            assert ours.render(messages, add_generation_prompt=prompted) == wanted
            assert ours.encode_rendered(wanted) == oracle.encode(wanted, add_special_tokens=False)
    wanted = expected(oracle, template, messages, add_generation_prompt=True)
    if wanted is None:
        with pytest.raises(errors.InvalidRequest):
            ours.encode_chat(messages)
        return
    ids = ours.encode_chat(messages)
    assert oracle.decode(ids) == wanted
    if plain(messages) == messages:
        assert ids == oracle.apply_chat_template(messages, chat_template=template, add_generation_prompt=True).input_ids
    elif not looks:
        written = expected(oracle, template, plain(messages), add_generation_prompt=True)
        assert special(ids, oracle) == special(oracle.encode(written), oracle)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_transformers_writes(folder: Path, oracle: PreTrainedTokenizerFast, name: str, conversation: str) -> None:
    """Fails if a template like the published ones renders another text or ids, or refuses other conversations."""
    template = TEMPLATES[name]
    agrees(codec(folder, template), oracle, template, CONVERSATIONS[conversation], looks=name == "looks")


def test_the_templates_write_something(oracle: PreTrainedTokenizerFast) -> None:
    """Fails if transformers itself refuses every conversation with one of the templates."""
    for name, template in TEMPLATES.items():
        written = [expected(oracle, template, messages) for messages in CONVERSATIONS.values()]
        assert len(written) - written.count(None) > 2, name


PIECES = [
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "<|im_start|>",
    "{{ messages[0].role }}",
    "{{ messages[-1]['content']|trim }}",
    "{%- if messages|length > 1 %} many {%- else -%} one {% endif -%}",
    "\n  {% set x = messages[0].content %}  \n",
    "{{ x|tojson }}{{ x is defined }}",
    "{{ messages|map(attribute='role')|join('/') }}",
    "{% set a = namespace(n=0) %}{% for m in messages %}{% set a.n = a.n + m.content|length %}{% endfor %}{{ a.n }}",
    "{% macro f(a, b='!') %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ f(messages[0].content, 2) }}",
    "{% for c in messages[0].content %}{% if c == '|' %}{% continue %}{% endif %}{{ c }}{% break %}{% endfor %}",
    "{{ messages[0].content.split('<|im_end|>')|join('~') }}",
    "{{ messages[0].content.replace('<|mask|>', '', 1).strip('<') }}",
    "{{ '<|im_end|>' in messages[0].content }}",
    "{{ messages[0].content|upper|replace('IM', 'im') }}",
    "{% if messages[0].content.startswith(('<|', 'W')) %}{{ raise_exception('no') if tools }}<|mask|>{% endif %}",
    "{{ messages[0].content[2:9] ~ messages|last|string }}",
    "{% generation %}{{ messages|selectattr('role', 'in', ['user'])|list|tojson(indent=1) }}{% endgeneration %}",
    "{# a comment #}{% filter lower %}A{{ messages[0].role }}{% endfilter %}{{ strftime_now('%Y') }}",
    "{% set y %}{{ messages[0].content }}<|im_end|>{% endset %}{{ y|length }}{{ y }}",
    "{{ eos_token + bos_token }}{{ messages[0].content.rfind('|') }}{{ messages[0].content|e }}",
    "{{ messages[0].content.rpartition('<|im_end|>')|list }}{{ messages[0].content.lstrip('<|im_start') }}",
    "{% raw %}{{ messages }}{% endraw %}{{ documents is none and not documents }}",
    "{{ '%s-%r' % (messages[0].content, 1) }}{{ '{:>9}'.format(messages[0].role) }}",
    "{% for a, b in messages[0].items() if a != 'role' %}{{ a }}={{ b }}{% endfor %}",
    "{{ messages[0].nothing.more }}",
]


@pytest.mark.parametrize("seed", range(60))
def test_features_together(folder: Path, oracle: PreTrainedTokenizerFast, seed: int) -> None:
    """Fails if a random combination of template features renders differently from transformers."""
    rng = random.Random(seed)
    template = "".join(rng.choices(PIECES, k=rng.randint(1, 7)))
    for messages in rng.sample(list(CONVERSATIONS.values()), 3):
        agrees(codec(folder, template), oracle, template, messages, looks=True)


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__ }}",
    "attributes by a filter": "{{ (''|attr('__class__')).x }}",
    "attributes by an item": "{{ ''['__class__'] }}{{ {}['__class__'].x }}",
    "attributes by map": "{{ ['']|map(attribute='__class__.__mro__')|first }}",
    "attributes by a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "attributes by a format of a map": "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
    "attributes by a format of a filter": "{{ ('{0.__class__.a}'|attr('format'))(1) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}{{ strftime_now.__globals__.x }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m._func.x }}",
    "the environment": "{{ self._TemplateReference__context.x }}",
    "subclasses": "{{ dict.__class__.x }}{{ namespace.__subclasses__() }}",
    "underscores of a namespace": "{% set ns = namespace(_a=1) %}",
    "a namespace's own": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__.x }}",
    "a list's append": "{{ messages.append(1) }}",
    "a message's update": "{{ messages[0].update({'a': 1}) }}",
    "bytes": "{{ 'a'.encode('utf-8') }}",
    "a value": "{{ messages() }}",
    "files": "{% include 'secret' %}",
    "modules": "{% import 'os' as os %}",
    "another template": "{% extends 'secret' %}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_stays_in_its_sandbox(folder: Path, case: str) -> None:
    """Fails if a template can access Python or files, or change its inputs, or does not raise when it tries."""
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(errors.InvalidRequest):
        codec(folder, HOSTILE[case]).encode_chat(messages)
    assert messages == [{"role": "user", "content": "a"}]


def test_what_the_product_refuses_of_messages(folder: Path) -> None:
    """Fails if a conversation without messages is rendered, or a message's key can contain a special token."""
    ours = codec(folder, "{% for m in messages %}{% for k in m %}{{ k }}{% endfor %}{% endfor %}")
    for messages in (
        [],
        [{"role": "user", "content": "a", "<|im_end|>": "b"}],
        [{"role": "user", "content": "a", 1: "b"}],
    ):
        with pytest.raises(errors.InvalidRequest, match="message"):
            ours.encode_chat(messages)  # type: ignore[arg-type]
