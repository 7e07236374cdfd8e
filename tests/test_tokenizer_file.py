"""A tokenizer.json that would abort the tokenizers library or exhaust memory is refused before the library reads it."""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, export, write_source, write_tokenizer

import dpad
from dpad.runtime import errors
from dpad.runtime.text.codec import TextCodec

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
WORDS = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
BPE = {"type": "BPE", "vocab": {"a": 0, "\u00e9": 1, "a\u00e9": 2}, "merges": [["a", "\u00e9"]]}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
ANYWHERE = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 5000}
CALLED = {"SpecialToken": {"id": "x", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
MANY = {"x": {"id": "x", "ids": [1] * 2000, "tokens": ["a"] * 2000}}


def _table(text: str) -> dict[str, Any]:
    """A normalizer with sentencepiece's table of one replacement."""
    data = (1024).to_bytes(4, "little") + bytes(1024) + text.encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def _in(section: str, inner: str, parts: list[Any]) -> dict[str, Any]:
    return {section: {"type": "Sequence", inner: parts}}


def _template(single: list[Any]) -> dict[str, Any]:
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": MANY}}


HARMFUL: dict[str, tuple[dict[str, Any], str]] = {
    "merges without the prefix": ({"model": BPE | {"continuing_subword_prefix": "#"}}, "continuing_subword_prefix"),
    "a prefix longer than they are": ({"model": BPE | {"continuing_subword_prefix": "####"}}, "continuing_subword_pre"),
    "merges as text": ({"model": BPE | {"merges": ["a \u00e9"], "continuing_subword_prefix": "#"}}, "continuing_subw"),
    "no type": ({"model": {k: BPE[k] for k in ("vocab", "merges")} | {"continuing_subword_prefix": "#"}}, "continuin"),
    "a token as deep as a stack": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 1_000_000, 0.0]]}},
        "a token of 1000000 characters",
    ),
    "a suffix of every word": ({"model": BPE | {"end_of_word_suffix": "x" * 10_000_000}}, "suffix"),
    "words of any length": ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}
        | {"continuing_subword_prefix": "#", "max_input_chars_per_word": 2**40}}, "max_input_chars_per_word"),
    "text that doubles": (_in("normalizer", "normalizers", [DOUBLE] * 40), "times longer"),
    "text that doubles, nested": (_in("normalizer", "normalizers",
        [{"type": "Sequence", "normalizers": [DOUBLE] * 20}] * 2), "times longer"),
    "text from nothing": ({"normalizer": ANYWHERE}, "times longer"),
    "text put before": (_in("normalizer", "normalizers", [{"type": "Prepend", "prepend": "a" * 99}] * 3), "times long"),
    "bytes as letters, again": (_in("normalizer", "normalizers", [{"type": "ByteLevel"}] * 25), "times longer"),
    "a table of long texts": ({"normalizer": _table("a" * 999)}, "replaces a character"),
    "a table without its end": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "Sequence"}}, "6 bytes, whose header says 2"
    ),
    "words that double": (_in("pre_tokenizer", "pretokenizers", [{"type": "ByteLevel", "add_prefix_space": True}
        | {"trim_offsets": False, "use_regex": False}] * 20), "times longer"),
    "tokens that double": (_in("decoder", "decoders", [DOUBLE] * 40), "times longer"),
    "a long setting": ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a" * 99_999}}}, "setting of 99999"),
    "many parts": (_in("normalizer", "normalizers", [{"type": "NFC"}] * 999), "999 parts|1000 parts"),
    "a text again and again": (_template([TEXT] * 500), "more than once"),
    "tokens without end": (_template([CALLED, TEXT]), "2000 tokens to a text"),
    "a long added token": ({"added_tokens": [{"id": 2, "content": "b" * 9999} | FLAGS]}, "an added token of 9999"),
    "many added tokens": (
        {"added_tokens": [{"id": 2 + i, "content": f"b{i:0999}"} | FLAGS for i in range(1100)]}, "added tokens have"
    ),
    "nested without end": ({"decoder": json.loads('{"decoders":[' * 70 + "{}" + "]}" * 70)}, "nested deeper than 64"),
}  # fmt: skip
SPELLED = {
    "a first model that is hidden": ('{"model": %s, "model": %s}', "names 'model' twice"),
    "objects of two bytes": ("[" + "{}," * 5_000_000 + "{}]", "values"),
    "no object": ("[]", "not a JSON object"),
    "a hundred megabytes": (" " * (65 << 20), "over 64 MiB"),
    "a number of many digits": ('{"model": ' + "9" * 5000 + "}", "digits"),
    "deep": ("[" * 100_000, "nested deeper"),
}


def _write(folder: Path, changes: dict[str, Any]) -> None:
    plain = {"version": "1.0", "added_tokens": [], "model": WORDS}
    (folder / "tokenizer.json").write_text(json.dumps(plain | changes))


@pytest.mark.parametrize("case", HARMFUL)
def test_what_the_library_does_not_bear_is_refused(tmp_path: Path, case: str) -> None:
    """Fails if a file that is known to abort the interpreter, or to exhaust memory, reaches the library."""
    changes, said = HARMFUL[case]
    _write(tmp_path, changes)
    with pytest.raises(errors.BundleError, match=f"tokenizer.json cannot be read: .*{said}"):
        TextCodec.open(tmp_path)


@pytest.mark.parametrize("case", SPELLED)
def test_a_file_is_read_within_limits(tmp_path: Path, case: str) -> None:
    """Fails if a file that is too large, or that the library would interpret differently, is read."""
    text, said = SPELLED[case]
    if "%s" in text:
        text %= (json.dumps(BPE | {"continuing_subword_prefix": "#"}), json.dumps(WORDS))
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(errors.BundleError, match=said):
        TextCodec.open(tmp_path)


def test_a_load_refuses_what_an_attacker_sealed(tmp_path: Path) -> None:
    """Fails if a sealed bundle with such a tokenizer aborts the process that loads it."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "bundle").directory
    path = bundle / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": BPE | {"continuing_subword_prefix": "#"}}))
    entry = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    edit(bundle, lambda data: data["files"]["tokenizer/tokenizer.json"].update(entry))
    code = "import sys, dpad\ntry: dpad.load(sys.argv[1])\nexcept dpad.DpadError as error: print(type(error).__name__)"
    ran = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.strip()) == (0, "BundleError"), ran.stderr
    with pytest.raises(errors.BundleError, match="continuing_subword_prefix"):
        dpad.load(bundle)


def test_dropout_is_for_training(tmp_path: Path) -> None:
    """Fails if BPE dropout in tokenizer.json gives a text another encoding each time."""
    _write(tmp_path, {"model": BPE | {"dropout": 0.5}})
    assert {tuple(TextCodec.open(tmp_path).encode("a\u00e9")) for _ in range(30)} == {(2,)}


def test_text_is_measured_before_it_is_encoded_and_decoded(tmp_path: Path) -> None:
    """Fails if text is encoded or decoded that normalizers or decoders would make too long."""
    many = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 4000}
    _write(tmp_path, {"normalizer": many, "decoder": many})
    codec = TextCodec.open(tmp_path)
    assert codec.encode("a") and codec.decode([0] * 100) == "a" * 400_000
    for call in (codec.encode, codec.encode_plain, codec.encode_rendered):
        with pytest.raises(errors.InvalidRequest, match="may become 40000000 bytes"):
            call("a" * 10_000)
    with pytest.raises(errors.BundleError, match="may become 40000000 bytes"):
        codec.decode([0] * 10_000)


def test_the_unknown_token_is_no_secret(tmp_path: Path) -> None:
    """Fails if text with unknown characters is refused because the unknown token is special."""
    write_tokenizer(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    token = FLAGS | {"id": 4, "content": "<unk>", "special": True, "normalized": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"added_tokens": [*data["added_tokens"], token]}))
    assert TextCodec.open(tmp_path).encode("w5 elsewhere w6") == [5, 4, 6]


PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2": {
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
    },
    "T5": {
        "normalizer": {"type": "Sequence", "normalizers": [
            _table("a" * 33),
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        ]},
    },
    "BERT": {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": True},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_passes(tmp_path: Path, name: str) -> None:
    """Fails if the limits refuse the sections of well-known tokenizers, or a prompt of 20,000 letters."""
    _write(tmp_path, {"pre_tokenizer": {"type": "WhitespaceSplit"}} | PUBLISHED[name])
    assert len(TextCodec.open(tmp_path).encode("w " * 10_000)) >= 1
