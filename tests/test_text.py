"""Prompts become token ids with the checkpoint's tokenizer and chat template, which are untrusted."""

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dpad.export.hub import resolve
from dpad.runtime import errors
from dpad.runtime.text.codec import TextCodec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def test_chat_is_rendered_by_the_template(folder: Path) -> None:
    """Fails if roles, contents or the generation prompt are missing."""
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
    several = [{"name": "tool_use", "template": "w7"}, {"name": "default", "template": "w8"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert TextCodec.open(folder).encode_chat([{"role": "user", "content": "x"}]) == [8]


def test_a_template_may_leave_a_loop(folder: Path) -> None:
    """Fails if break and continue in loops are refused, which transformers supports."""
    (folder / "chat_template.jinja").write_text(
        "{% for i in range(9) %}{% if i > 4 %}{% break %}{% endif %}w9 {% endfor %}"
    )
    assert TextCodec.open(folder).encode_chat([{"role": "user", "content": "x"}]) == [9] * 5


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 'a' + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_cannot_reach_python_nor_change_its_input(folder: Path, template: str) -> None:
    """Fails if a hostile template runs code, or its own error does not raise `InvalidRequest`."""
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(errors.InvalidRequest):
        TextCodec.open(folder).encode_chat([{"role": "user", "content": "w5"}])


@pytest.mark.parametrize(
    ("file", "written", "said"),
    [
        ("chat_template.jinja", b"{% for %}", "not valid Jinja"),
        ("chat_template.jinja", b"{% if 1 %}" * 999, "not valid Jinja"),
        ("chat_template.jinja", "Größe".encode("latin-1"), "chat_template.jinja cannot be read"),
        ("chat_template.jinja", None, "chat_template.jinja cannot be read"),
        ("tokenizer_config.json", None, "tokenizer_config.json cannot be read"),
    ],
)
def test_a_file_that_is_no_template_is_a_bundle_error(
    folder: Path, file: str, written: bytes | None, said: str
) -> None:
    """Fails if a broken template, or a folder instead of a file, gives a traceback."""
    (folder / file).unlink()
    if written is None:
        (folder / file).mkdir()
    else:
        (folder / file).write_bytes(written)
    with pytest.raises(errors.BundleError, match=said):
        TextCodec.open(folder).encode_chat([{"role": "user", "content": "w5"}])


def test_messages_of_a_wrong_shape_are_refused(folder: Path) -> None:
    """Fails if a message without role or content is accepted."""
    with pytest.raises(errors.InvalidRequest, match="role"):
        TextCodec.open(folder).encode_chat([{"content": "w5"}])


@pytest.mark.parametrize("content", [["<mask>"], [{"type": "text", "text": "<mask>"}], {"text": "<mask>"}, None, 7])
def test_messages_hold_text_only(folder: Path, content: object) -> None:
    """Fails if a message's content that is not text is accepted, in which special tokens would not be noticed."""
    with pytest.raises(errors.InvalidRequest, match="'content' is"):
        TextCodec.open(folder).encode_chat([{"role": "user", "content": content}])  # type: ignore[dict-item]


def test_text_that_no_file_could_hold_is_refused(folder: Path) -> None:
    """Fails if a lone surrogate, which JSON allows, gives an error of the library."""
    with pytest.raises(errors.InvalidRequest, match="Unicode"):
        TextCodec.open(folder).encode("w5 \ud800")


def rewrite(folder: Path, **changes: Any) -> TextCodec:
    """The tokenizer with changed sections."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return TextCodec.open(folder)


CUT = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PADDED = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_id": 1, "pad_type_id": 0, "pad_token": "<eos>"}


@pytest.mark.parametrize("changes", [{"truncation": CUT}, {"truncation": CUT | {"stride": 5}}, {"padding": PADDED}])
def test_what_a_tokenizer_was_trained_to_cut_is_kept(folder: Path, changes: dict[str, Any]) -> None:
    """Fails if a prompt is truncated or padded, as some tokenizer files request."""
    codec = rewrite(folder, **changes)
    assert codec.encode("w5 w6 w7 w8") == codec.encode_plain("w5 w6 w7 w8") == [5, 6, 7, 8]


UNDEFINED = {"single": [{"SpecialToken": {"id": "X", "type_id": 0}}], "pair": [], "special_tokens": {}}
FAULTY: dict[str, dict[str, Any]] = {
    "not a tokenizer": {"model": {}},
    "no unknown word": {"model": {"type": "WordLevel", "vocab": {"a": 1}, "unk_token": "?"}},
    "bytes that are no table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a template of no token": {"post_processor": {"type": "TemplateProcessing", **UNDEFINED}},
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_tokenizer_is_a_bundle_error(folder: Path, case: str) -> None:
    """Fails if the library's untyped errors, or its panics, which are no `Exception`, are not converted."""
    with pytest.raises(errors.BundleError, match="tokenizer.json"):
        rewrite(folder, **FAULTY[case]).encode("w5 w6")


def test_an_interrupt_is_no_fault_of_the_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if Ctrl-C while encoding is reported as a broken file."""
    codec = TextCodec.open(folder)

    class Interrupted:
        def encode(self, *args: Any, **options: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(codec, "_tokenizer", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        codec.encode("w5")


@pytest.mark.parametrize("ids", [[-1], [2**40], ["a"], [1.5], 5])
def test_ids_that_are_none_are_refused(folder: Path, ids: Any) -> None:
    """Fails if decoding a value that is not a token id gives an error of the library."""
    with pytest.raises(errors.InvalidRequest, match="token ids are whole numbers"):
        TextCodec.open(folder).decode(ids)


def test_a_message_may_use_up_all_private_characters(folder: Path) -> None:
    """Fails if a text that uses all private-use characters, which stand for special tokens, raises a KeyError."""
    used = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(errors.InvalidRequest, match="private use"):
        TextCodec.open(folder).encode_chat([{"role": "user", "content": f"{used}<mask>"}])


EMBEDDED = ("tiny", "tiny-dream")
SPECIAL = ("<|startoftext|>", "<|eot_id|>", "<|mdm_mask|>", "<|im_start|>", "<|im_end|>", "<|mask|>", "<|endoftext|>")
HOSTILE = st.lists(
    st.sampled_from([*SPECIAL, "<|", "|>", "<", "<|im_", "mask|>", "\n", " ", "\ue000", "\ue001m", "{{ bos_token }}"])
    | st.text(max_size=8),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("model", EMBEDDED)
@settings(deadline=None, max_examples=150)
@given(content=HOSTILE)
def test_a_user_cannot_write_a_special_token(model: str, content: str) -> None:
    """Fails if a user's text becomes a special token, loses a character, or changes the template's special tokens."""
    folder = resolve(model).directory
    codec, oracle = TextCodec.open(folder), AutoTokenizer.from_pretrained(folder)
    special = {i: token.content for i, token in oracle.added_tokens_decoder.items() if token.special}
    messages = [{"role": "user", "content": content}]
    ids = codec.encode_chat(messages)
    empty = oracle.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    written = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert oracle.decode(ids) == written
    assert [i for i in ids if i in special] == [i for i in oracle.encode(empty) if i in special]
    for plain in (codec.encode(content), codec.encode_plain(content)):
        assert not special.keys() & set(plain) and oracle.decode(plain) == content
    if not any(token in content for token in special.values()):
        assert ids == oracle.encode(written, add_special_tokens=False)
    assert codec.encode_rendered(written) == oracle.encode(written, add_special_tokens=False)


@pytest.mark.parametrize("strip", ["lstrip", "rstrip"])
def test_special_tokens_that_take_spaces_along_still_do(tmp_path: Path, strip: str) -> None:
    """Fails if a template's special token does not strip the spaces that it strips in transformers."""
    source = resolve("tiny").directory
    data = json.loads((source / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        token[strip] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    text = "3 + 4 <|eot_id|> \n\n<|eot_id|>  x"
    assert TextCodec.open(tmp_path).encode_rendered(text) == AutoTokenizer.from_pretrained(tmp_path).encode(text)


def test_a_special_token_that_is_also_a_word_is_refused(folder: Path) -> None:
    """Fails if a tokenizer with the mask in its ordinary vocabulary is accepted, so that text could contain it."""
    with pytest.raises(errors.InvalidRequest, match="special token <mask>"):
        TextCodec.open(folder).encode("w5 <mask>")
