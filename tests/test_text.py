"""Prompts become token ids through the checkpoint's own tokenizer and chat template, safely."""

import json
from pathlib import Path

import pytest
from bundles import write_tokenizer

from dpad.runtime import errors
from dpad.runtime.text import TextCodec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def test_chat_is_rendered_by_the_template(folder: Path) -> None:
    """Fails if roles, contents or the generation prompt go missing."""
    codec = TextCodec.open(folder)
    messages = [
        {"role": "user", "content": "w5 w6"},
        {"role": "assistant", "content": "w7"},
        {"role": "user", "content": "w8"},
    ]
    assert codec.encode_chat(messages) == [2, 5, 6, 3, 7, 2, 8, 3]
    assert codec.decode([5, 1, 6]) == "w5 w6"


def test_a_template_in_the_tokenizer_config_is_used(folder: Path) -> None:
    """Fails if older checkpoints, which have no chat_template.jinja, lose their template."""
    (folder / "chat_template.jinja").unlink()
    assert not TextCodec.open(folder).has_chat_template
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ eos_token }} w9", "eos_token": "<eos>"})
    )
    assert TextCodec.open(folder).encode_chat([{"role": "user", "content": "x"}]) == [1, 9]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_cannot_reach_python_nor_change_its_input(folder: Path, template: str) -> None:
    """Fails if a hostile checkpoint's template runs code, or its own refusal is not a request error."""
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(errors.InvalidRequest):
        TextCodec.open(folder).encode_chat([{"role": "user", "content": "w5"}])


def test_a_template_that_is_no_jinja_is_a_bundle_error(folder: Path) -> None:
    """Fails if a broken template surfaces as a Jinja traceback."""
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(errors.BundleError, match="Jinja"):
        TextCodec.open(folder).encode_chat([{"role": "user", "content": "w5"}])


def test_messages_of_a_wrong_shape_are_refused(folder: Path) -> None:
    """Fails if a message without role or content renders as nothing."""
    with pytest.raises(errors.InvalidRequest, match="role"):
        TextCodec.open(folder).encode_chat([{"content": "w5"}])


def test_a_broken_tokenizer_is_a_bundle_error(folder: Path) -> None:
    """Fails if the library's bare Exception comes out."""
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(errors.BundleError, match="tokenizer.json"):
        TextCodec.open(folder)
