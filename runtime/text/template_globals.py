"""The functions that chat templates call, as transformers gives them."""

from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Cycler, Joiner, Namespace

from dpad.runtime.text.template_budget import Exhausted
from dpad.runtime.text.template_filters import now

_FORMAT = 1000  # characters; the C library pads numbers as a format asks


def raise_exception(message: Any) -> NoReturn:
    """How templates refuse messages."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time of this rendering."""
    if len(form) > _FORMAT:
        raise Exhausted(f"it writes the time in more than {_FORMAT} characters")
    return now().moment.strftime(form)


class TemplateDict:
    """`dict` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As `dict`."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """`namespace(...)`, whose names begin with no underscore, and whose values it does not write out."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:  # its values may hold it, and each other many times over
        return "<Namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name[:40]!r}")


GLOBALS = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "dict": TemplateDict(),
    "namespace": TemplateNamespace,
    "cycler": Cycler,
    "joiner": Joiner,
}
