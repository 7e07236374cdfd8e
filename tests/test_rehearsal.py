"""An export tries a checkpoint's tokenizer, chat template and presets before the bundle is put in place."""

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import TEMPLATE, export, write_source
from checkpoints import MASK
from heard import heard

from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle

BROKEN: dict[str, tuple[str, Any, str]] = {
    "tokenizer": ("tokenizer.json", "{}", "source/tokenizer.json cannot be read"),
    "tokenizer is a folder": ("tokenizer.json", None, "source/tokenizer.json cannot be read"),
    "tokenizer's settings": ("tokenizer_config.json", "{", "source/tokenizer_config.json cannot be read"),
    "template's encoding": ("chat_template.jinja", b"\xff\xfe", "source/chat_template.jinja cannot be read"),
    "template's syntax": ("chat_template.jinja", "{% for %}", "source/chat_template.jinja: .* not valid Jinja"),
    "template's sum": ("chat_template.jinja", "{{ 'a' + 1 }}", "source/chat_template.jinja: .* TypeError"),
    "template's division": ("chat_template.jinja", "{{ 1 / 0 }}", "source/chat_template.jinja: .* division by zero"),
    "no option": ("presets.json", {"gsm8k": {"gen_len": 256}}, "presets.json.* 'gsm8k' holds 'gen_len'"),
    "no preset": ("presets.json", {"gsm8k": 256}, "presets.json.* 'gsm8k' is not an object"),
    "option's value": ("presets.json", {"a": {"gen_length": 100}}, "presets.json.* 'a': .*does not divide"),
    "option's type": ("presets.json", {"a": {"eos_token_ids": 5}}, "presets.json.* 'a': eos_token_ids 5"),
    "switch": ("presets.json", {"a": {"early_termination": "no"}}, "presets.json.* 'a': early_termination 'no'"),
    "window": ("presets.json", {"a": {"schedule": {"gaussian": {"window": "9"}}}}, "presets.json.* 'a' has a schedule"),
    "schedule": ("presets.json", {"a": {"schedule": {"linear": {}}}}, "presets.json.* 'a' has a schedule"),
    "end of text": ("generation_config.json", {"eos_token_id": "</s>"}, "generation_config.json: eos_token_id '</s>'"),
    "end is the mask": ("generation_config.json", {"eos_token_id": [MASK]}, "generation_config.json.* mask id"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its bundle, `out`, beside it."""
    folder = tmp_path_factory.mktemp("whole")
    export(write_source(folder / "source"), folder / "out")
    return folder


PARTS = "{% for part in messages[0]['content'] %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
SILENT = {
    "nothing": "{# later #}",
    "blanks": " \n",
    "a system's prompt": "You are helpful, since 2034. 53{% if 0 %}{{ messages }}{% endif %}",
    "a list of parts": PARTS,
    "another role": "{% for m in messages %}{% if m.role == 'human' %}{{ m.content }}{% endif %}{% endfor %}assistant:",
    "another key": "{% for m in messages %}{{ m.role }}: {{ m.value }}{% endfor %}",
}


@pytest.mark.parametrize("case", [*SILENT, "empty, in the settings"])
def test_a_template_that_loses_the_message_is_refused(tmp_path: Path, case: str) -> None:
    """Fails if a chat template that does not write the message is accepted."""
    source = write_source(tmp_path / "source", layers=1)
    if case in SILENT:
        (source / "chat_template.jinja").write_text(SILENT[case])
    else:
        (source / "chat_template.jinja").unlink()
        (source / "tokenizer_config.json").write_text('{"chat_template": ""}')
    with pytest.raises(errors.CheckpointError, match="source/.*does not write the user's message .*--chat-template"):
        heard(source)


@pytest.mark.parametrize("how", ["| upper", "| trim", "| tojson", "| replace('+', 'plus')", "| wordwrap(3)"])
def test_a_template_may_change_the_message(tmp_path: Path, how: str) -> None:
    """Fails if a template that writes the message in a changed form is refused."""
    source = write_source(tmp_path / "source", layers=1)
    (source / "chat_template.jinja").write_text(f"user: {{{{ messages[-1]['content'] {how} }}}}")
    assert not [line for line in heard(source) if "template" in line]


def test_a_template_may_want_a_system_turn(tmp_path: Path) -> None:
    """Fails if a template that needs a system turn stops the export, or this is not reported."""
    source = write_source(tmp_path / "source", layers=1)
    wants = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (source / "chat_template.jinja").write_text(wants + TEMPLATE)
    [line] = [line for line in heard(source) if "the chat template refuses a prompt of text alone" in line]
    assert "no system" in line and "system turn" in line
    (source / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")
    with pytest.raises(errors.CheckpointError, match="not today.*--chat-template, or remove it"):
        heard(source)


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, whole: Path, case: str) -> None:
    """Fails if an export succeeds whose bundle cannot be used, or the error lacks the file or the cause."""
    name, content, said = BROKEN[case]
    source = write_source(tmp_path / "source")
    (source / name).unlink(missing_ok=True)
    if content is None:
        (source / name).mkdir()
    elif isinstance(content, bytes):
        (source / name).write_bytes(content)
    else:
        (source / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(errors.CheckpointError, match=said) as caught:
        export(source, whole / "out")
    assert "stage" not in str(caught.value)
    Bundle.open(whole / "out")
    assert sorted(path.name for path in whole.iterdir()) == ["out", "source"]
