"""Every layout of tokenizer files gives the ids of transformers' AutoTokenizer."""

import re
from pathlib import Path

import pytest
from checkpoints import random_weights, raw_config, write_checkpoint
from tokenizer_layouts import (
    DECODER,
    FAST,
    FIRST,
    FLAGS,
    IDS,
    LAYOUTS,
    MERGES,
    OWN,
    PLACED,
    QWEN_CLASS,
    TEXTS,
    VOCAB,
    WHOLE,
    Files,
    parts,
    place,
    whole,
    write,
)
from transformers import AutoTokenizer, TokenizersBackend
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from dpad.export.tokenizer.classes import OVERRULING
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime import errors
from dpad.runtime.text.special_tokens import DEFAULTS


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    raw = raw_config("dream") | {"vocab_size": 400, "mask_token_id": IDS["<|mask|>"], "eos_token_id": FIRST}
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("dream"), raw, random_weights(raw)))


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    raw = raw_config("llada")
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("llada"), raw, random_weights(raw)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_those_of_transformers(dream: Checkpoint, tmp_path: Path, layout: str) -> None:
    """Fails if ids of a text or a rendered prompt, or the text of tokens, differ from transformers."""
    source = write(tmp_path / "source", LAYOUTS[layout])
    oracle = AutoTokenizer.from_pretrained(source)
    codec = place(dream, source)
    for text in TEXTS:
        ids = oracle.encode(text, add_special_tokens=False)
        assert codec.encode_rendered(text) == ids
        assert codec.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
        if "<" not in text:
            assert codec.encode(text) == oracle.encode(text)


CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }} <|im_end|>\n {% endfor %}<|im_start|>user"
SAID = ("How many books?", " a\n", "x<|im_ start|>", "How <|mask|> many<|mask|>", "<|mask|>", "<|MASK|> books")


@pytest.mark.parametrize("layout", ["whole", "parts of GPT-2", *PLACED])
def test_a_chat_has_the_ids_of_transformers(dream: Checkpoint, tmp_path: Path, layout: str) -> None:
    """Fails if a part of a chat prompt is encoded as at another place, or a message's text becomes a special token."""
    files = LAYOUTS[layout] | {"chat_template.jinja": CHAT}
    codec = place(dream, write(tmp_path / "source", files))
    if "tokenizer.json" in files:  # messages contain the mask's text, which is no token in other layouts
        content = files["tokenizer.json"]
        other = {"<|mask|>": "<|no mask|>"}
        kept = [token | {"content": other.get(text := token["content"], text)} for token in content["added_tokens"]]
        settings = files["tokenizer_config.json"] | {"mask_token": None}
        files = files | {"tokenizer.json": content | {"added_tokens": kept}, "tokenizer_config.json": settings}
    else:
        settings = files["tokenizer_config.json"]
        table = settings["added_tokens_decoder"] | {str(IDS["<|mask|>"]): {"content": "<|no mask|>", **FLAGS}}
        files = files | {"tokenizer_config.json": settings | {"mask_token": None, "added_tokens_decoder": table}}
    oracle = AutoTokenizer.from_pretrained(write(tmp_path / "oracle", files))
    for said in SAID:
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "12"}]
        rendered = oracle.apply_chat_template(messages, tokenize=False)
        assert codec.encode_chat(messages) == oracle.encode(rendered, add_special_tokens=False), said


def test_text_is_never_a_token_where_ids_are_left_out(dream: Checkpoint, tmp_path: Path) -> None:
    """Fails if a special token in a message's text is confused with a word of a high id."""
    vocab = {"<unk>": 0, "How": 1, "<|mask|>": 2, "many": 4}
    own = [{"id": 0, "content": "<unk>", **FLAGS}, {"id": 2, "content": "<|mask|>", **FLAGS}]
    sections = {"pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "Fuse"}}
    sections["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    files = whole({}, own=own, sections=sections) | {"chat_template.jinja": "<|mask|>{{ messages[0].content }}"}
    codec = place(dream, write(tmp_path / "source", files))
    assert codec.encode_chat([{"role": "user", "content": "How many"}]) == [2, 1, 4]
    with pytest.raises(errors.BundleError, match="leaves out ids"):
        codec.encode_chat([{"role": "user", "content": "many <|mask|>"}])


CONTRADICTIONS: dict[str, tuple[Files, str]] = {
    "two ids": (
        parts(QWEN_CLASS | {"added_tokens_decoder": DECODER}, added_tokens=IDS | {"<|mask|>": FIRST + 9}),
        r"'<\|mask|>' has the id .* in .*added_tokens.json",
    ),
    "two ids, whole": (whole({}, added_tokens={"<|mask|>": FIRST}), r"'<\|mask|>' has the id"),
    "ids of another vocabulary": (
        whole({"added_tokens_decoder": {str(FIRST + 7): {"content": "<new>"}}}),
        "gives token '<new>' the id",
    ),
    "a gap": (
        parts(QWEN_CLASS, added_tokens=IDS | {"<new>": FIRST + 9}),
        "added_tokens.json gives token '<new>' the id",
    ),
    "a word's id": (parts(QWEN_CLASS, added_tokens={"<new>": 5}), "gives token '<new>' the id 5"),
    "one id for two": (parts(QWEN_CLASS, added_tokens={"<a>": FIRST, "<b>": FIRST}), "gives token '<b>'"),
    "own ids that are not": (
        whole({}, own=[*OWN[:3], OWN[3] | {"id": FIRST + 8}]),
        r"gives the added token '<\|mask|>'",
    ),
    "no id": (parts(QWEN_CLASS, added_tokens={"<new>": "x"}), "'<new>' has the id 'x'"),
    "no tokens": (whole({}) | {"added_tokens.json": []}, "added_tokens.json is not a JSON object"),
    "own tokens that are none": (whole({}, own=[5]), "added_tokens is not a list"),  # type: ignore[list-item]
    "spaces before words": (parts(QWEN_CLASS | {"add_prefix_space": True}), "add_prefix_space"),
    "half a merge": (parts(QWEN_CLASS, merges="#version: 0.2\na\n"), "line 2 of merges.txt"),
    "a merge of no token": (parts(QWEN_CLASS, merges="H \u0120many\n"), "needs the token 'H\u0120many'"),
    "ids that are none": (parts(QWEN_CLASS) | {"vocab.json": {"a": 0.5}}, "not an integer"),
    "merges cut": (
        parts(QWEN_CLASS, merges=MERGES[: MERGES.index("\n", len(MERGES) // 2)]),
        "merges.txt lacks the merge",
    ),
    "merges cut, added tokens": (
        parts(QWEN_CLASS, merges=MERGES[: MERGES.index("\n", 99)], added_tokens=IDS),
        r"lacks the merge of .* tokens cannot be made\): it is truncated",
    ),
    "a merge less": (parts(QWEN_CLASS, merges=MERGES.rstrip().rpartition("\n")[0]), f"1 of {FIRST} tokens cannot"),
    "no merges": (parts(QWEN_CLASS, merges=""), "merges.txt lacks the merge"),
    "the version alone": (parts(QWEN_CLASS, merges="#version: 0.2\n"), "merges.txt lacks the merge"),
    "one id for two words": (parts(QWEN_CLASS, merges="") | {"vocab.json": {"a": 0, "b": 0}}, "two tokens the same id"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_files_that_contradict_are_refused(dream: Checkpoint, tmp_path: Path, case: str) -> None:
    """Fails if files that give a token different ids are accepted."""
    files, said = CONTRADICTIONS[case]
    with pytest.raises(
        (errors.CheckpointError, errors.BundleError), match=said.replace("<|", r"<\|").replace("|>", r"\|>")
    ):
        place(dream, write(tmp_path / "source", files))


NOTES: dict[str, tuple[Files, str]] = {
    "made": (parts(QWEN_CLASS), "made from vocab.json and merges.txt by the rules of Qwen2Tokenizer"),
    "added": (whole(FAST, own=OWN[:3]), r"1 added token.*<\|mask\|>"),
    "left out": (parts(QWEN_CLASS | {"added_tokens_decoder": {}, "mask_token": None, "eos_token": None}
        | {"pad_token": None}, added_tokens=IDS), "added_tokens.json: .*and 3 more"),
    "another name": (
        parts(QWEN_CLASS | {"added_tokens_decoder": DECODER}, special_tokens_map={"eos_token": "<|im_end|>"}),
        r"special_tokens_map.json: eos_token '<\|im_end\|>' is ignored",
    ),
    "rules of the class": (whole(QWEN_CLASS), "names Qwen2Tokenizer, and tokenizer.json splits words by other rules"),
    "another class": (whole(FAST | {"tokenizer_class": "GPTNeoXTokenizerFast"}), "GPTNeoXTokenizerFast, whose rules"),
    "split": (whole(FAST | {"split_special_tokens": True}), "split_special_tokens is ignored"),
    "clean up": (LAYOUTS["words"] | {"tokenizer_config.json": {"clean_up_tokenization_spaces": True}}, "clean_up"),
    "dropout": (whole(FAST, sections={"model": WHOLE["model"] | {"dropout": 0.5}}), "dropout 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_what_an_export_decides_is_said(dream: Checkpoint, tmp_path: Path, case: str) -> None:
    """Fails if an ignored file, or a difference to transformers, is not reported."""
    files, said = NOTES[case]
    lines: list[str] = []
    codec = place(dream, write(tmp_path / "source", files), lines.append)
    assert re.search(said, "\n".join(lines))
    assert codec.encode(TEXTS[0]) == codec.encode(TEXTS[0])


def test_classes_that_overrule_are_those_of_transformers() -> None:
    """Fails if the list of classes that override tokenizer.json differs from transformers."""
    named = {name for name in TOKENIZER_MAPPING_NAMES.values() if name} | OVERRULING
    classes = {name: tokenizer_class_from_name(name) for name in {name.removesuffix("Fast") for name in named}}
    own = {name for name, found in classes.items() if found not in (None, TokenizersBackend)}
    own = {name for name in own if "__init__" in vars(classes[name])}
    assert {name for name in own if issubclass(classes[name], TokenizersBackend)} <= OVERRULING <= own


SILENT = {
    "the library's": whole(FAST),
    "none": whole({}),
    "one of the repository's": whole(
        {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}}
    ),
    "one that is not known": whole({"tokenizer_class": "MyTokenizer"}),
    "Llama's over bytes": whole({"tokenizer_class": "LlamaTokenizerFast"}),
}


@pytest.mark.parametrize("case", SILENT)
def test_of_a_class_that_leaves_the_file_as_it_is_nothing_is_said(dream: Checkpoint, tmp_path: Path, case: str) -> None:
    """Fails if an export reports a difference to transformers where there is none."""
    lines: list[str] = []
    place(dream, write(tmp_path / "source", SILENT[case]), lines.append)
    assert "whose rules" not in "\n".join(lines)


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - {"DreamTokenizer"}))
def test_templates_know_the_tokens_of_the_class(dream: Checkpoint, tmp_path: Path, name: str) -> None:
    """Fails if a default of the class, such as `{{ bos_token }}`, differs from transformers."""
    chat = "".join(f"[{{{{ {kind}_token }}}}]" for kind in ("bos", "eos", "unk", "pad", "cls", "sep", "mask"))
    source = write(tmp_path / "source", whole({"tokenizer_class": name}) | {"chat_template.jinja": chat})
    messages = [{"role": "user", "content": "a"}]
    rendered = AutoTokenizer.from_pretrained(source).apply_chat_template(messages, tokenize=False)
    assert place(dream, source).render(messages) == rendered


def test_merges_may_have_blank_lines(dream: Checkpoint, tmp_path: Path) -> None:
    """Fails if blank lines, which Dream's own code ignores, stop an export or change an id."""
    config = QWEN_CLASS | {"added_tokens_decoder": DECODER}
    blank = "\ufeff#version: 0.2\n\n" + MERGES.replace("\n", " \n\n", 3) + "\n\n"
    plain, other = (
        place(dream, write(tmp_path / name, parts(config, merges=merges)))
        for name, merges in (("plain", MERGES), ("blank", blank))
    )
    assert [plain.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]


OTHERS: dict[str, tuple[Files, str]] = {
    "sentencepiece": ({"tokenizer.model": "x", "tokenizer_config.json": FAST}, r"tokenizer.model \(sentencepiece\)"),
    "tiktoken": ({"qwen.tiktoken": "x"}, r"qwen.tiktoken \(tiktoken\)"),
    "parts of a class that is not known": (parts(FAST), "vocab.json and merges.txt"),
    "a vocabulary alone": ({"vocab.json": VOCAB, "tokenizer_config.json": QWEN_CLASS}, "vocab.json"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_tokenizer_is_named_with_the_way_out(llada: Checkpoint, tmp_path: Path, case: str) -> None:
    """Fails if a tokenizer in another format is treated as if there were none."""
    files, said = OTHERS[case]
    lines: list[str] = []
    with pytest.raises(errors.BundleError):
        place(llada, write(tmp_path / "source", files), lines.append)
    assert re.search(f"token ids only.*to make one from {said}.*save_pretrained", lines[0])


def test_the_family_does_not_matter_where_a_class_is_named(llada: Checkpoint, tmp_path: Path) -> None:
    """Fails if a LLaDA checkpoint has no tokenizer with files that give other families one."""
    source = write(tmp_path / "source", LAYOUTS["parts of GPT-2"])
    assert place(llada, source).encode(TEXTS[0]) == AutoTokenizer.from_pretrained(source).encode(TEXTS[0])
