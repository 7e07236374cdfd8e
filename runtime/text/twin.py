"""`Twin`: a second tokenizer over the same model, which recognises special tokens in text.

    Twin(tokenizer).tokenizer.encode("<s>user")                        # as transformers encodes it
    twin = Twin(tokenizer, sign="\\ue000")
    twin.tokenizer.encode(twin.signed("<s><s>", {0: "<s>"}, str))     # the first <s> is the token, the second is text

It encodes the text that a chat template writes, in one call. Encoding pieces would give other tokens, because a piece's
tokens depend on its neighbours: Metaspace may put a space before the first piece only, a special token may count only
as a separate word, and another added token may start with the same characters. The twin shares the tokenizer's large
model; only the added tokens take memory twice.
"""

from collections.abc import Callable, Mapping

from tokenizers import AddedToken, Encoding, Tokenizer


class Twin:
    """A tokenizer's twin, whose special tokens contain `sign` after their first character.

    No text may contain the sign. With an empty sign the twin recognises special tokens wherever text spells them.
    `added` holds the ids of the twin's added tokens.
    """

    def __init__(self, tokenizer: Tokenizer, sign: str = "") -> None:
        self.sign = sign
        self.tokenizer = Tokenizer(tokenizer.model)
        self.tokenizer.normalizer, self.tokenizer.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        added = [pair for pair in sorted(tokenizer.get_added_tokens_decoder().items()) if pair[1].content]
        self.tokenizer.add_tokens([self._signed(token) for _, token in added])
        numbers = {self.tokenizer.token_to_id(self._spelling(token)): number for number, token in added}
        self.added = frozenset(numbers)
        self._others = {twin: number for twin, number in numbers.items() if twin != number}
        if any(tokenizer.model.id_to_token(twin) is not None for twin in self._others):
            raise ValueError(
                "its vocabulary leaves out ids, so a special token cannot be distinguished from text that spells it"
            )
        self._special = {token.content: self._spelling(token) for _, token in added if token.special}

    def ids(self, encoding: Encoding) -> list[int]:
        """The tokenizer's own ids for an encoding of its twin."""
        return [self._others.get(number, number) for number in encoding.ids] if self._others else list(encoding.ids)

    def signed(self, text: str, places: Mapping[int, str], show: Callable[[str], str]) -> str:
        """`text` with the sign added to the special tokens at `places`; `show` converts the text between them."""
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
        spelling, normalizer = self._spelling(token), self.tokenizer.normalizer
        # A normalizer that removes the sign would turn text into the special token, so such a token is not normalized.
        kept = not token.special or normalizer is None or self.sign in normalizer.normalize_str(spelling)
        return AddedToken(
            spelling,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized and kept,
            special=token.special,
        )
