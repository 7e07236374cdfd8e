"""The global functions that chat templates may call, as in transformers."""

from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Cycler, Joiner, Namespace

from dpad.runtime.text.template_budget import Exhausted
from dpad.runtime.text.template_filters import now

_FORMAT = 1000  # most characters of a format for the time; the C library pads numbers to widths in the format


def raise_exception(message: Any) -> NoReturn:
    """Refuse the messages: raise a `TemplateError`."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time of this rendering, formatted."""
    if len(form) > _FORMAT:
        raise Exhausted(f"it writes the time with a format of more than {_FORMAT} characters")
    return now().moment.strftime(form)


class TemplateDict:
    """The function `dict`, without the other attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Call `dict`."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Call `dict.fromkeys`."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """`namespace(...)` that refuses names with a leading underscore and does not print its values."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:  # values may contain the namespace, or each other many times
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"names in a namespace may not begin with an underscore, as {name[:40]!r} does")


GLOBALS = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "dict": TemplateDict(),
    "namespace": TemplateNamespace,
    "cycler": Cycler,
    "joiner": Joiner,
}
