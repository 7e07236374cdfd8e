"""Makes every text call of a service once: opens a tokenizer, wraps a message, encodes and decodes.

    use_text(checkpoint.directory, stage / "tokenizer")     # raises CheckpointError

export/rehearsal/trial.py runs it in a process of its own, so this module imports little.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from dpad.runtime.errors import BundleError, CheckpointError, DpadError, InvalidRequest
from dpad.runtime.text.codec import TextCodec

REFUSED = "refused: "
_SAID = 4000  # characters of an error message that are kept
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 53 + 34?"}]
_WRITTEN = re.compile("53.{0,40}34", re.DOTALL)  # a template may change the text between the two numbers
_WAYS = "repair it, choose another with --chat-template, or remove it for a bundle whose prompts are plain text"
_SHOWN = 80  # characters of a template's output in an error message
_RUN = 2000  # equal characters in a row, on which a slow pattern of a tokenizer hangs
_KINDS = ("a", "Ab", "1", " ", "\n", "a ", "é", "漢", "!", "ab1 ", "x!", "\t\n")
_SAMPLES = (
    "It's 12 + 345 = 357.\r\n\n\tÜber naïve e\u0301 漢字かな 한국어 עברית \U0001f600\u200d\U0001f680 \ufffd\u0344",
    *(kind * (_RUN // len(kind)) for kind in _KINDS),
    "a" * _RUN + "!",
    "".join(map(chr, range(1, 0x250))),
)


def use_text(source: Path, tokenizer: Path) -> None:
    """Use the files in `tokenizer`; raises `CheckpointError`, which names the file of `source`."""
    codec = wrap_a_message(source, tokenizer)
    refused = []
    for sample in _SAMPLES:
        try:
            codec.decode(codec.encode(sample))
            codec.encode_rendered(sample)
        except InvalidRequest:  # the sample spells one of its special tokens
            continue
        except BundleError as error:
            refused.append(f"it cannot encode {sample[:20]!r}: {error}")
            if not isinstance(error.__cause__, Exception):  # a Rust panic; other errors may concern one sample only
                break
    else:
        if len(refused) < len(_SAMPLES):
            refused = []
    try:
        for number in range(0 if refused else codec.size + 1):
            codec.token_text(number)
    except BundleError as error:
        refused = [f"it cannot decode the token {number}: {error}"]
    if refused:
        raise CheckpointError(f"{source / 'tokenizer.json'}: {refused[-1]}")


def wrap_a_message(source: Path, tokenizer: Path, say: Callable[[str], object] = str) -> TextCodec:
    """Open the tokenizer, and render a message with its chat template if it has one.

    Raises `CheckpointError` if either fails or the rendered text lacks the message. Calls `say` if the template needs
    a system turn.
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
            f"{origin}: the chat template refuses a prompt of text alone; pass chat messages with a system turn, or "
            f"token ids ({error})"
        )
    except BundleError as error:
        raise CheckpointError(f"{origin}: {error}; {_WAYS}") from error
    if not _WRITTEN.search(written):
        start = repr(written[:_SHOWN]) + "..." * (len(written) > _SHOWN)
        raise CheckpointError(
            f"{origin}: the chat template does not write the user's message (it writes {start}); {_WAYS}"
        )
    return codec


def serve(source: str, tokenizer: str) -> None:
    """Run `use_text` in the other process, and write its error, if any, to standard output."""
    try:
        use_text(Path(source), Path(tokenizer))
    except DpadError as error:
        told = str(error)
    except MemoryError:
        told = f"{source}: its tokenizer or chat template needs more memory than an export allows"
    else:
        return
    sys.stdout.buffer.write((REFUSED + told[:_SAID]).encode(errors="backslashreplace"))
