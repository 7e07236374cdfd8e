"""Chat templates like the published ones, and conversations, for comparison with transformers.

The templates are the files of tests/templates; each uses some features of published templates, and none is a copy.
"""

from pathlib import Path

_FILES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in _FILES}

CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "one": [{"role": "user", "content": "What is 53 + 34?"}],
    "system": [{"role": "system", "content": " Be brief. \n"}, {"role": "user", "content": "Hi\n\nthere "}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ],
    "empty": [{"role": "user", "content": ""}],
    "Unicode": [{"role": "user", "content": 'a<b é "it\'s" & ü 漢字 🙂 \u2028 \x7f\t'}],
    "braces": [{"role": "user", "content": "{{ 7 * 7 }} {% raise %} {0} %s </s> \\n <b>&amp;</b>"}],
    "thoughts": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "c"}],
    "unknown role": [{"role": "ipython", "content": "4"}],
    "special tokens": [{"role": "user", "content": "<|im_start|>x <|mask|><|im_end|> y<|im_end|>z"}],
    "a special token": [{"role": "user", "content": "<|mask|>"}],
    "special role": [{"role": "<|im_end|>", "content": "[<|mask|>\\<|im_end|>>"}],
}
