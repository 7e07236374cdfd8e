"""Does with text once what a service does: opens a tokenizer, wraps a message, encodes and decodes.

    use_text(checkpoint.directory, stage / "tokenizer")     # raises CheckpointError

export/rehearsal/trial.py calls it in a process of its own, so this module imports little.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from dpad.runtime.errors import BundleError, CheckpointError, DpadError, InvalidRequest
from dpad.runtime.text.codec import TextCodec

REFUSED = "refused: "
_SAID = 4000  # characters of an error
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 53 + 34?"}]
_WRITTEN = re.compile("53.{0,40}34", re.DOTALL)  # however a template spells what is around the numbers
_WAYS = "mend it, choose another with --chat-template, or remove it, and prompts are plain text"
_SHOWN = 80  # characters of what a template wrote
_RUN = 2000  # characters of one kind, in which a pattern that is slow gets stuck
_KINDS = ("a", "Ab", "1", " ", "\n", "a ", "é", "漢", "!", "ab1 ", "x!", "\t\n")
_SAMPLES = (
    "It's 12 + 345 = 357.\r\n\n\tÜber naïve e\u0301 漢字かな 한국어 עברית \U0001f600\u200d\U0001f680 \ufffd\u0344",
    *(kind * (_RUN // len(kind)) for kind in _KINDS),
    "a" * _RUN + "!",
    "".join(map(chr, range(1, 0x250))),
)


def use_text(source: Path, tokenizer: Path) -> None:
    """Use the files that were placed in `tokenizer`; raises `CheckpointError` naming the file of `source`."""
    codec = wrap_a_message(source, tokenizer)
    refused = []
    for sample in _SAMPLES:
        try:
            codec.decode(codec.encode(sample))
            codec.encode_rendered(sample)
        except InvalidRequest:  # the sample spells one of its special tokens
            continue
        except BundleError as error:
            refused.append(f"it cannot take {sample[:20]!r}: {error}")
            if not isinstance(error.__cause__, Exception):  # a panic: what is refused in words may be one text alone
                break
    else:
        if len(refused) < len(_SAMPLES):
            refused = []
    try:
        for number in range(0 if refused else codec.size + 1):
            codec.token_text(number)
    except BundleError as error:
        refused = [f"it cannot write the token {number}: {error}"]
    if refused:
        raise CheckpointError(f"{source / 'tokenizer.json'}: {refused[-1]}")


def wrap_a_message(source: Path, tokenizer: Path, say: Callable[[str], object] = str) -> TextCodec:
    """The tokenizer, whose chat template has written a message, if there is one.

    Raises `CheckpointError`, also where what is written does not hold the message; says what a user has to know.
    """
    try:
        codec = TextCodec.open(tokenizer)
    except BundleError as error:
        raise CheckpointError(str(error).replace(str(tokenizer), str(source))) from error
    if not codec.has_chat_template:
        return codec
    files = ("chat_template.jinja", "tokenizer_config.json")
    origin = source / next(name for name in files if (tokenizer / name).exists())
    try:
        written = codec.render(MESSAGES[1:])
    except InvalidRequest as error:
        try:
            written = codec.render(MESSAGES)
        except (BundleError, InvalidRequest):
            raise CheckpointError(f"{origin}: {error}; {_WAYS}") from error
        say(
            f"{origin}: text alone is refused by the chat template; pass chat messages with a system turn, or token "
            f"ids ({error})"
        )
    except BundleError as error:
        raise CheckpointError(f"{origin}: {error}; {_WAYS}") from error
    if not _WRITTEN.search(written):
        start = repr(written[:_SHOWN]) + "..." * (len(written) > _SHOWN)
        raise CheckpointError(
            f"{origin}: the chat template does not write the user's message ({start} is all it writes); {_WAYS}"
        )
    return codec


def serve(source: str, tokenizer: str) -> None:
    """What the other process does: the same, and what it raised on its standard output."""
    try:
        use_text(Path(source), Path(tokenizer))
    except DpadError as error:
        told = str(error)
    except MemoryError:
        told = f"{source}: its tokenizer or chat template needs more memory than an export allows"
    else:
        return
    sys.stdout.buffer.write((REFUSED + told[:_SAID]).encode(errors="backslashreplace"))
