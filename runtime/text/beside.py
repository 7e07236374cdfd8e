"""`Beside`: a tokenizer's twin over the same model, in which special tokens count: for what a chat template writes.

    Beside(tokenizer).twin.encode("<s>user")                        # as transformers encodes it
    beside = Beside(tokenizer, sign="\\ue000")
    beside.twin.encode(beside.signed("<s><s>", {0: "<s>"}, str))     # the first <s> is the token, the second is text

Such a text is encoded in one call, not piece by piece, since a piece does not tell where it stands: Metaspace may put
a space before the first one alone, a special token may count only as a word of its own, and another added token may
begin where it begins. Only the added tokens take memory a second time: the model, which is large, is shared.
"""

from collections.abc import Callable, Mapping

from tokenizers import AddedToken, Encoding, Tokenizer


class Beside:
    """With a `sign`, which no text may hold, special tokens have it behind their first character.

    `added` are the ids of the twin's added tokens.
    """

    def __init__(self, tokenizer: Tokenizer, sign: str = "") -> None:
        self.sign = sign
        self.twin = Tokenizer(tokenizer.model)
        self.twin.normalizer, self.twin.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        added = [pair for pair in sorted(tokenizer.get_added_tokens_decoder().items()) if pair[1].content]
        self.twin.add_tokens([self._signed(token) for _, token in added])
        numbers = {self.twin.token_to_id(self._spelling(token)): number for number, token in added}
        self.added = frozenset(numbers)
        self._others = {twin: number for twin, number in numbers.items() if twin != number}
        if any(tokenizer.model.id_to_token(twin) is not None for twin in self._others):
            raise ValueError("its vocabulary leaves out ids, so a special token is not told from text that spells it")
        self._special = {token.content: self._spelling(token) for _, token in added if token.special}

    def ids(self, encoding: Encoding) -> list[int]:
        """What the tokenizer itself has as the ids of an encoding of its twin."""
        return [self._others.get(number, number) for number in encoding.ids] if self._others else list(encoding.ids)

    def signed(self, text: str, places: Mapping[int, str], show: Callable[[str], str]) -> str:
        """`text` with the sign in the special tokens at these places, and all else as `show` gives it."""
        pieces, end = [], 0
        for start, spelling in sorted(places.items()):
            if start >= end:
                pieces += [show(text[end:start]), self._special[spelling]]
                end = start + len(spelling)
        return "".join([*pieces, show(text[end:])])

    def _spelling(self, token: AddedToken) -> str:
        content = str(token.content)
        return content[:1] + self.sign + content[1:] if token.special else content

    def _signed(self, token: AddedToken) -> AddedToken:
        spelling, normalizer = self._spelling(token), self.twin.normalizer
        # One that takes the sign away would let text be the special token.
        kept = not token.special or normalizer is None or self.sign in normalizer.normalize_str(spelling)
        return AddedToken(
            spelling,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized and kept,
            special=token.special,
        )
