"""What a checkpoint brings besides weights is tried before its bundle is put in place."""

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source
from checkpoints import MASK

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
    "no preset": ("presets.json", {"gsm8k": 256}, "presets.json.* 'gsm8k' is no object"),
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
    """A checkpoint, and beside it `out`, its bundle."""
    folder = tmp_path_factory.mktemp("whole")
    export(write_source(folder / "source"), folder / "out")
    return folder


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, whole: Path, case: str) -> None:
    """Fails if an export succeeds whose bundle cannot be opened or used, or does not name the file and the cause."""
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
