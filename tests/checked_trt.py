"""`Checked`: wraps a simulation of TensorRT, and accepts only calls that the real bindings accept.

    trt = Checked(HostTrt(...), tensorrt)       # in place of the module; objects that it returns are checked too
    trt.used                                    # {"ICudaEngine.get_tensor_name", ...}

Each access is checked against the real class: the name exists, the arguments match the signature in its docstring and
have its types, and an attribute that is set can be set. Callers get the real enums, `Dims` and base classes; the
simulation gets its own.
"""

import enum
from types import ModuleType, SimpleNamespace
from typing import Any

from pybind_signatures import bind, fits, overloads

_SIMPLE = {"bool": bool, "int": int, "str": str}  # types of results that are returned unchanged


class NotInTensorRT(AssertionError):  # not an AttributeError, which hasattr would catch
    """The simulation has or accepts something that the real library does not."""


def enums_of(simulated: Any) -> dict[str, enum.EnumType]:
    """The enums of a simulated module, by name."""
    members = vars(type(simulated)) | vars(simulated)
    return {name: value for name, value in members.items() if isinstance(value, enum.EnumType)}


class Checked:
    """Wraps an object of the simulation that stands for one of the real class `kind`, or for the module."""

    def __init__(self, simulated: Any, real: ModuleType, kind: Any = None, enums: Any = None, used: Any = None) -> None:
        enums, used = enums_of(simulated) if enums is None else enums, set() if used is None else used
        self.__dict__.update(_simulated=simulated, _real=real, _stands_for=kind, _enums=enums, used=used)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            return getattr(self._simulated, name)
        member, value = getattr(self._owner, name, None), getattr(self._simulated, name, None)
        if member is None:
            if value is not None:
                raise NotInTensorRT(f"{self._label(name)} is not in {self._real.__name__}")
            raise AttributeError(self._label(name))
        if isinstance(member, type) and (issubclass(member, self._bases) or hasattr(member, "__members__")):
            self._note(name)
            return member
        if value is None and not hasattr(self._simulated, name):
            raise AttributeError(f"{self._label(name)} is not simulated")
        self._note(name)
        if isinstance(member, property):
            return self._out(value, overloads(member.fget)[0].return_annotation)
        function = member.__init__ if isinstance(member, type) else member

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                signature = bind(function, *arguments, **named)
            except TypeError as error:
                raise NotInTensorRT(f"{self._label(name)}: {error}") from None
            answer = value(*map(self._in, arguments), **{key: self._in(one) for key, one in named.items()})
            return self._out(answer, member.__name__ if isinstance(member, type) else signature.return_annotation)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = getattr(self._owner, name, None)
        if not isinstance(member, property) or member.fset is None:
            raise NotInTensorRT(f"{self._label(name)} cannot be set in {self._real.__name__}")
        [signature] = overloads(member.fset)
        wanted = list(signature.parameters.values())[1].annotation
        if not fits(value, wanted):
            raise NotInTensorRT(f"{self._label(name)} = {value!r}: it takes {wanted}")
        self._note(name)
        setattr(self._simulated, name, self._in(value))

    @property
    def _owner(self) -> Any:
        return self._stands_for or self._real

    @property
    def _bases(self) -> tuple[type, ...]:
        """The real base classes from which users derive."""
        return self._real.ILogger, self._real.IProgressMonitor

    def _label(self, name: str) -> str:
        return f"{self._stands_for.__name__}.{name}" if self._stands_for else name

    def _note(self, name: str) -> None:
        self.used.add(self._label(name))

    def _in(self, value: Any) -> Any:
        """Convert an argument for the simulation."""
        if isinstance(value, Checked):
            return value._simulated
        if isinstance(value, self._real.ILogger):
            severity = self._real.ILogger.Severity.ERROR
            return SimpleNamespace(log=lambda _, words: value.log(severity, words))
        own = self._enums.get(type(value).__name__)
        return value if own is None else own[value.name]

    def _out(self, value: Any, annotation: str) -> Any:
        """Convert a result of the simulation for the caller."""
        if annotation in _SIMPLE:
            if not isinstance(value, _SIMPLE[annotation]):
                raise NotInTensorRT(f"{value!r} for {self._stands_for} is no {annotation}")
            return value
        if value is None or annotation == "IHostMemory":  # which is a buffer
            return value
        for name, own in self._enums.items():
            if isinstance(value, own):
                return getattr(getattr(self._real, name), value.name)
        if annotation == "tuple":
            return tuple(self._out(one, "") for one in value)
        if annotation == "list" and value and isinstance(value[0], tuple):
            return [self._real.Dims(sizes) for sizes in value]
        real = getattr(self._real, annotation, None)
        return value if real is None else Checked(value, self._real, real, self._enums, self.used)

    def __str__(self) -> str:
        return str(self._simulated)
