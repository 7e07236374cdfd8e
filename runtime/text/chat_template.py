"""`ChatTemplate`: how a checkpoint writes a conversation, rendered as transformers renders it, within limits.

    template = ChatTemplate.open(directory, named_tokens(directory))      # None where there is none
    template.render([{"role": "user", "content": "Count to five."}])

A template is a program from a stranger: it runs in a sandbox, and no longer than `STEPS`.
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
_NAMES = 20  # that a message lists


class ChatTemplate:
    """The source of a template, and the special tokens that it knows by name."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)

    @classmethod
    def open(cls, directory: Path, variables: Mapping[str, str]) -> "ChatTemplate | None":
        """The template that transformers takes of those in `directory`; raises `BundleError` for none of several."""
        templates = read_templates(directory)
        return cls(choose(templates, None, directory), variables) if templates else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, the assistant's turn opened at its end; raises `InvalidRequest`."""
        return self._render(messages, None, add_generation_prompt, datetime.now())

    def render_disguised(self, messages: Sequence[Message], spellings: Collection[str]) -> tuple[str, Disguise | None]:
        """... and for messages that spell special tokens, these under a disguise; raises `InvalidRequest`.

        It must show what the messages give as they are.
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
                f"the chat template was stopped: {error}; shorten the messages, or mend the template"
            ) from None
        except Exception as error:  # a template is a program: what it adds or divides may raise anything
            raise InvalidRequest(f"the chat template refused these messages: {kind(error)}: {told(error)}") from error

    @cached_property
    def _template(self) -> Template:
        try:
            return TemplateEnvironment().from_string(self.source)
        except Exhausted as error:
            raise BundleError(f"the chat template cannot be used: {error}; mend it") from None
        except Exception as error:  # Jinja's own, and those of the Python that it writes: RecursionError, SyntaxError
            raise BundleError(f"the chat template is not valid Jinja: {told(error)}") from error


def read_templates(directory: Path) -> dict[str, str]:
    """Name -> source of every chat template that a tokenizer's `directory` holds, as transformers reads them.

    Files go before tokenizer_config.json. Raises `BundleError` for what cannot be read.
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
            raise BundleError(f"{path}: each chat_template of a list has a name and a template; mend it") from None
    named = written if isinstance(written, dict) else {DEFAULT: written}
    for name, source in named.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise BundleError(f"{path}: chat_template {shown(name)} is no text; mend it")
    return named


def choose(templates: Mapping[str, str], name: str | None, directory: Path) -> str:
    """The template called `name`, or the default; raises `BundleError` with the names there are."""
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
    """Raise `InvalidRequest` for what is no conversation of texts."""
    if listed(messages) is None:
        raise InvalidRequest(f"a conversation is a list of chat messages, not {kind(messages)}")
    if not messages:
        raise InvalidRequest("a conversation without messages cannot be written; give at least one")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InvalidRequest(f"a chat message needs 'role' and 'content', got {shown(message)}")
        for key, value in message.items():  # what is nested could spell a special token unseen
            if not isinstance(key, str) or not isinstance(value, str):
                raise InvalidRequest(f"a chat message holds text, and its {shown(key)} is {kind(value)}")


def _with_reasoning(message: Message) -> dict[str, str]:
    """The message as a dict; what its author thought, if it says so, under each name that templates read."""
    thought = next((message[name] for name in _REASONING if name in message), None)
    if thought is None:
        return dict(message)
    return {"thinking": thought, **message, "reasoning_content": thought}


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read as text: {error}") from error
