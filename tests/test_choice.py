"""`Choice`, the final part of an answer's text, with one token per byte: any order, parts of characters, stops."""

from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from dpad.runtime.decoding.event import Generation, StepEvent, Timings
from dpad.runtime.text.codec import TextCodec
from dpad.serving.choice import Choice

EOS, START, PLACES = 256, 5, 64
TEXT = "héllo 😀\n wörld 👩‍👩‍👧, end"


def byte_codec() -> TextCodec:
    """A codec with one token per byte, so that a character may have four tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(dict(zip(alphabet, count())), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return TextCodec(tokenizer, None)


CODEC = byte_codec()
GENERATION = Generation("", [], np.empty(0, np.int64), np.empty(0, np.int64), 1, Timings(0, 0, 0, 0, 0, 0), "length")


def event(pairs: list[tuple[int, int]], number: int = 1, generation: Any = None) -> StepEvent:
    """The event of a pass that committed these (position, token) pairs."""
    places, tokens = np.array([p for p, _ in pairs], np.int64), np.array([t for _, t in pairs], np.int64)
    sure = np.linspace(0.5, 1, len(pairs))
    return StepEvent(0, 0, number, number, START + places, tokens, sure, generation is not None, 0.0, generation)


def choice(most: int = PLACES, stop: tuple[str, ...] = ()) -> Choice:
    return Choice(CODEC, [EOS], 0, start=START, length=PLACES, most=most, stop=stop)


def told(choice: Choice, tokens: list[int], order: list[int], sizes: list[int]) -> list[str]:
    """The text that `choice` returns for each pass, which commits the next positions of `order`."""
    pieces, left, number = [], list(order), 0
    for size in sizes:
        number, taken, left = number + 1, left[:size], left[size:]
        if not taken or choice.finish_reason is not None:
            break
        last = GENERATION if not left else None
        pieces.append(choice.take(event([(place, tokens[place]) for place in taken], number, last)))
    return pieces


@st.composite
def passes(draw: Any) -> tuple[list[int], list[int]]:
    """A random order of all positions, and the number of positions that each pass commits."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=PLACES))
    return draw(st.permutations(range(PLACES))), sizes


def padded(text: str) -> list[int]:
    ids = CODEC.encode_plain(text)
    assert len(ids) <= PLACES
    return ids + [EOS] * (PLACES - len(ids))


@given(passes())
def test_pieces_are_whole_characters_and_add_up(how: tuple[list[int], list[int]]) -> None:
    """Fails if a piece holds part of a character, or the pieces do not add up to the text."""
    answer = choice()
    pieces = told(answer, padded(TEXT), *how)
    assert "".join(pieces) == answer.text == TEXT and answer.finish_reason == "stop"
    assert not any("\ufffd" in piece for piece in pieces)
    assert answer.token_count == len(CODEC.encode_plain(TEXT))


@given(passes(), st.lists(st.text("hélo 😀\nwörd,", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_sequence_is_told(how: tuple[list[int], list[int]], stops: list[str]) -> None:
    """Fails if a stop sequence or its beginning is part of a piece, or does not end the text."""
    answer = choice(stop=tuple(stops))
    pieces = told(answer, padded(TEXT), *how)
    places = [TEXT.index(stop) for stop in stops if stop in TEXT]
    wanted = TEXT[: min(places)] if places else TEXT
    assert "".join(pieces) == answer.text == wanted and answer.finish_reason == "stop"
    if places:
        assert not any(stop in answer.text for stop in stops)
        assert len(CODEC.decode(CODEC.encode_plain(TEXT)[: answer.token_count])) >= len(wanted)


@given(passes(), st.integers(1, 20))
def test_most_tokens_count(how: tuple[list[int], list[int]], most: int) -> None:
    """Fails if more tokens than requested are returned, or a truncated character is lost without a replacement."""
    answer = choice(most)
    pieces = told(answer, padded(TEXT), *how)
    assert "".join(pieces) == answer.text == CODEC.decode(CODEC.encode_plain(TEXT)[:most])
    assert (answer.token_count, answer.finish_reason) == (most, "length")


@given(passes(), st.integers(0, PLACES - 1))
def test_a_deadline_leaves_gaps_out(how: tuple[list[int], list[int]], passed: int) -> None:
    """Fails if text after a gap is lost at a deadline, or returned before it."""
    tokens, answer = padded(TEXT), choice()
    order = how[0]
    decided = sorted(order[:passed])
    early = "".join(answer.take(event([(place, tokens[place])])) for place in order[:passed])
    first_gap = next(place for place in range(PLACES) if place not in decided)
    ids = [tokens[place] for place in decided]
    whole = CODEC.decode(ids[: ids.index(EOS)] if EOS in ids else ids)
    if answer.finish_reason is None:
        late = answer.take(event([], 9, GENERATION))
        assert answer.text == early + late == whole
        assert answer.finish_reason == ("stop" if EOS in ids else "deadline")
    assert len(early) <= len(CODEC.decode(tokens[:first_gap]))


def test_tokens_are_told_once_with_their_places() -> None:
    """Fails if a token has another token's probability or position, or is returned twice."""
    tokens, answer = padded("ab é"), choice()
    seen = []
    for place in (1, 0, 4, 2, 3, 5):
        answer.take(event([(place, tokens[place])]))
        seen += answer.news()
    assert [token.text for token in seen] == ["a", "b", " ", "\ufffd", "\ufffd"]
    assert [token.offset for token in seen] == [0, 1, 2, 3, 4]
    assert all(token.logprob == pytest.approx(np.log(0.5)) for token in seen)
