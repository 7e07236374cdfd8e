"""`ChatTemplate` renders a conversation with the checkpoint's chat template, as transformers does, within limits.

    template = ChatTemplate.open(directory, named_tokens(directory))      # None if there is no template
    template.render([{"role": "user", "content": "Count to five."}])

A template is an untrusted program: it runs in a sandbox, for at most `STEPS` steps.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

from jinja2 import Template

from dpad.runtime.arguments import listed, reading
from dpad.runtime.bundle.files import read_text
from dpad.runtime.errors import BundleError, InvalidRequest
from dpad.runtime.show import escaped, kind, shown, told
from dpad.runtime.text.disguise import Disguise
from dpad.runtime.text.special_tokens import read_table
from dpad.runtime.text.template_budget import Budget, Exhausted
from dpad.runtime.text.template_environment import TemplateEnvironment
from dpad.runtime.text.template_filters import rendering

Message = Mapping[str, str]

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"
DEFAULT = "default"
_REASONING = ("reasoning_content", "thinking", "reasoning")
_NAMES = 20  # most templates that an error message lists


class ChatTemplate:
    """The source of a template, and the special tokens that it can use by name."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)

    @classmethod
    def open(cls, directory: Path, variables: Mapping[str, str]) -> "ChatTemplate | None":
        """Open the template in `directory` that transformers uses; raises `BundleError` if none is the default."""
        templates = read_templates(directory)
        return cls(choose(templates, None, directory), variables) if templates else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Write the conversation as text that ends with the opened assistant's turn; raises `InvalidRequest`."""
        return self._render(messages, None, add_generation_prompt, datetime.now())

    def render_disguised(self, messages: Sequence[Message], spellings: Collection[str]) -> tuple[str, Disguise | None]:
        """Render the conversation with a disguise for special tokens that the messages spell, None if they spell none.

        Raises `InvalidRequest`, also if the text without its disguise differs from that of the plain messages.
        """
        disguise = Disguise.of(spellings, messages, self.source)
        moment = datetime.now()
        plain = self._render(messages, None, True, moment)
        if disguise is None:
            return plain, None
        hidden = [{key: disguise.hide(value) for key, value in message.items()} for message in messages]
        rendered = self._render(hidden, disguise, True, moment)
        if disguise.show(rendered) != plain:
            raise InvalidRequest(
                "the chat template changes special tokens that a message spells; take them out of the message"
            )
        return rendered, disguise

    def _render(
        self, messages: Sequence[Message], disguise: Disguise | None, add_generation_prompt: bool, moment: datetime
    ) -> str:
        check_messages(messages)
        template = self._template
        values = dict(
            self._variables,
            messages=list(map(_with_reasoning, messages)),
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            with rendering(Budget(), disguise, moment):
                return template.render(values)
        except Exhausted as error:
            raise InvalidRequest(
                f"the chat template was stopped: {error}; shorten the messages, or correct the template"
            ) from None
        except Exception as error:  # a template is a program, whose operations may raise anything
            raise InvalidRequest(f"the chat template refused these messages: {kind(error)}: {told(error)}") from error

    @cached_property
    def _template(self) -> Template:
        try:
            return TemplateEnvironment().from_string(self.source)
        except Exhausted as error:
            raise BundleError(f"the chat template cannot be used: {error}; correct it") from None
        except Exception as error:  # Jinja's errors, and RecursionError or SyntaxError from its generated Python
            raise BundleError(f"the chat template is not valid Jinja: {told(error)}") from error


def read_templates(directory: Path) -> dict[str, str]:
    """Read every chat template in a tokenizer's `directory` as transformers does: name -> source.

    Template files take precedence over tokenizer_config.json. Raises `BundleError` if one cannot be read.
    """
    files = {DEFAULT: directory / FILE} if (directory / FILE).exists() else {}
    more = sorted(path for path in (directory / FOLDER).glob("*.jinja") if not path.name.startswith("."))
    files |= {path.name.removesuffix(".jinja"): path for path in more}
    if files:
        return {name: _read(path) for name, path in files.items()}
    path = directory / "tokenizer_config.json"
    written = read_table(path).get("chat_template")
    if written is None:
        return {}
    if isinstance(written, list):
        try:
            written = {entry["name"]: entry["template"] for entry in written}
        except (KeyError, TypeError):
            raise BundleError(f"{path}: each chat_template of a list needs a name and a template; correct it") from None
    named = written if isinstance(written, dict) else {DEFAULT: written}
    for name, source in named.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise BundleError(f"{path}: chat_template {shown(name)} is not text; correct it")
    return named


def choose(templates: Mapping[str, str], name: str | None, directory: Path) -> str:
    """The template called `name`, or the default; raises a `BundleError` that lists the names."""
    wanted = DEFAULT if name is None else name
    if wanted in templates:
        return templates[wanted]
    names = ", ".join(map(escaped, sorted(templates)[:_NAMES])) or "none"
    if name is None:
        several = "several chat templates and none is" if len(templates) > 1 else "one chat template, which is not"
        raise BundleError(
            f"{directory} has {several} the default: choose one of {names} with dpad export --chat-template NAME"
        )
    raise BundleError(f"{directory} has no chat template {name!r}; it has {names}")


@reading("a conversation")
def check_messages(messages: Sequence[Message]) -> None:
    """Raise `InvalidRequest` unless `messages` is a list of messages whose fields are all text."""
    if listed(messages) is None:
        raise InvalidRequest(f"a conversation is a list of chat messages, not {kind(messages)}")
    if not messages:
        raise InvalidRequest("a conversation without messages cannot be rendered; give at least one")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InvalidRequest(f"a chat message needs 'role' and 'content', got {shown(message)}")
        for key, value in message.items():  # a nested value could hide a special token
            if not isinstance(key, str) or not isinstance(value, str):
                raise InvalidRequest(f"a chat message holds text only, but its {shown(key)} is {kind(value)}")


def _with_reasoning(message: Message) -> dict[str, str]:
    """The message as a dict; its reasoning, if it has any, is under each name that templates use."""
    thought = next((message[name] for name in _REASONING if name in message), None)
    if thought is None:
        return dict(message)
    return {"thinking": thought, **message, "reasoning_content": thought}


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read as text: {error}") from error
