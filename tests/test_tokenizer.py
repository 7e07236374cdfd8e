"""Dream's vocabulary files give the same tokenizer as in transformers."""

import json
import random
from pathlib import Path

import pytest
from bundles import export
from checkpoints import random_weights, raw_config, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

import dpad
from dpad.export.tokenizer.vocabulary_files import from_parts
from dpad.models.training import corpus
from dpad.runtime import errors

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json as in Dream's repositories, with 600 tokens."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=600 - len(SPECIAL) - 1, initial_alphabet=alphabet, show_progress=False)
    rng = random.Random(0)
    tokenizer.train_from_iterator((corpus.sample(rng, "train").answer for _ in range(300)), trainer)
    tokenizer.model.save(str(folder))
    first = tokenizer.get_vocab_size()
    added = {str(first + i): {"content": text, "special": True} for i, text in enumerate(SPECIAL)}
    added[str(first + len(SPECIAL))] = {"content": "<tool_call>", "special": False}
    config = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config |= {"unk_token": None, "tokenizer_class": "DreamTokenizer", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def pair(parts: Path) -> tuple[Tokenizer, Qwen2Tokenizer]:
    """This project's tokenizer and transformers' tokenizer."""
    return Tokenizer.from_str(json.dumps(from_parts(parts))), Qwen2Tokenizer.from_pretrained(parts)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text(max_size=12)
        | st.sampled_from(["12 + 345 = ", " \n\n", "It's", "\u00e9", "e\u0301", *SPECIAL, "<tool_call>"]),
        max_size=10,
    ).map("".join)
)
def test_the_tokenizer_is_the_one_of_transformers(pair: tuple[Tokenizer, Qwen2Tokenizer], text: str) -> None:
    """Fails if a text gets other ids than from Qwen2's tokenizer."""
    ours, oracle = pair
    assert ours.encode(text).ids == oracle.encode(text)


def _checkpoint(folder: Path, parts: Path) -> Path:
    raw = raw_config("dream") | {"vocab_size": 640, "mask_token_id": 598, "eos_token_id": 595}
    write_checkpoint(folder, raw, random_weights(raw))
    for file in parts.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_dream_checkpoint_takes_text(parts: Path, tmp_path: Path) -> None:
    """Fails if a bundle of Dream's files has no tokenizer or no chat template."""
    bundle = export(_checkpoint(tmp_path / "source", parts), tmp_path / "out")
    with dpad.load(bundle.directory) as model:
        ids = model.request("How many?").prompt_ids
        oracle = Qwen2Tokenizer.from_pretrained(parts)
        expected = oracle.apply_chat_template([{"role": "user", "content": "How many?"}], return_dict=False)
        assert list(ids) == expected
        assert isinstance(model.generate("How many?", gen_length=32).text, str)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("merges.txt", "a b c d", "not a byte-level BPE"),
        ("vocab.json", "{", "not a byte-level BPE"),
        ("vocab.json", '{"a": 0}', "not a byte-level BPE"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9999": {"content": "<x>"}}}', "the id 9999"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<x>"}}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"600": {}}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder"),
    ],
)
def test_parts_that_make_no_tokenizer(parts: Path, tmp_path: Path, file: str, text: str, said: str) -> None:
    """Fails if broken vocabulary files give a traceback, or change the ids of special tokens."""
    source = _checkpoint(tmp_path / "source", parts)
    (source / file).write_text(text)
    with pytest.raises(errors.CheckpointError, match=said):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
