"""Presets: named sets of decoding options, which a bundle brings for the tasks that they were measured on.

    presets = read_presets({"gsm8k": {"gen_length": 256, "schedule": {"gaussian": {"k": 4, "scale": 2}}}})
    presets["gsm8k"]["schedule"]        # Gaussian(k=4, scale=2)

In JSON a preset holds fields of `GenerationOptions`; a schedule is an object with its name and its
parameters. The preset `default` applies to every call that names no preset.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from dpad.runtime.checks import is_integer
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.foreign_options import instead_of
from dpad.runtime.decoding.options import GenerationOptions, Options, defaults
from dpad.runtime.decoding.suffix import Full, Gaussian, SuffixSchedule, Uniform
from dpad.runtime.errors import InvalidRequest, ManifestError
from dpad.runtime.show import escaped, shown

DEFAULT = "default"
SCHEDULES: dict[str, type[Gaussian] | type[Uniform] | type[Full]] = {
    "gaussian": Gaussian,
    "uniform": Uniform,
    "none": Full,
}

Preset = dict[str, Any]  # fields of GenerationOptions


def read_presets(data: Mapping[str, Any]) -> dict[str, Preset]:
    """Read the presets of a manifest; raises a `ManifestError` that names the preset and its wrong field."""
    known = {field.name for field in fields(GenerationOptions)}
    presets = {}
    for name, preset in data.items():
        if not isinstance(preset, Mapping) or (unknown := sorted(preset.keys() - known)):
            wrong = (
                f"holds {shown(unknown[0])}, which is not a decoding option"
                if isinstance(preset, Mapping)
                else "is not an object"
            )
            raise ManifestError(f"preset {shown(name)} {wrong}; correct it, and export the bundle again")
        schedule = {"schedule": _schedule(name, preset["schedule"])} if "schedule" in preset else {}
        presets[name] = {**preset, **schedule}
        try:
            GenerationOptions(**presets[name]).check_types()
        except InvalidRequest as error:
            raise ManifestError(f"preset {shown(name)}: {error}; correct it, and export the bundle again") from None
    return presets


def resolve(presets: Mapping[str, Preset], contract: StepContract, options: Mapping[str, Any]) -> GenerationOptions:
    """Resolve a call's `options` to `GenerationOptions`.

    A field comes from `options`; if it is not there, from their `preset`, or from the preset `default` if they name
    none; and otherwise from the defaults for the model of `contract`. The window of a preset's schedule is cut to a
    shorter `gen_length`. Unknown names of presets and options raise `InvalidRequest`.
    """
    _check_names(options)
    given = dict(options)
    preset = given.pop("preset", None)
    preset = str.__str__(preset) if isinstance(preset, str) else preset
    if preset is not None and (not isinstance(preset, str) or preset not in presets):
        known = ", ".join(map(escaped, presets)) or "none"
        raise InvalidRequest(f"preset {shown(preset)} is not one of this bundle's: {known}")
    base = {**defaults(contract), **presets.get(preset or DEFAULT, {})}
    length, schedule = given.get("gen_length", base.get("gen_length")), base.get("schedule")
    if isinstance(schedule, (Gaussian, Uniform)) and schedule.window and is_integer(length):
        base["schedule"] = replace(schedule, window=max(1, min(schedule.window, length)))
    return GenerationOptions(**{**base, **given})


def served(presets: Mapping[str, Preset], contract: StepContract, options: Mapping[str, Any]) -> GenerationOptions:
    """Resolve as `resolve` does; raises an `InvalidRequest` that names the preset if it makes the call unservable."""
    resolved = resolve(presets, contract, options)
    name = DEFAULT if options.get("preset") is None else options["preset"]
    if name in presets and (refusal := _refusal(resolved, contract)):
        given = {option: value for option, value in options.items() if option != "preset"}
        if refusal != _refusal(GenerationOptions(**{**defaults(contract), **given}), contract):
            raise InvalidRequest(f"preset {shown(name)}: {refusal}")
    return resolved


def schedule_named(name: str, base: SuffixSchedule | None = None, **parameters: Any) -> SuffixSchedule:
    """Make the schedule called `name` in `SCHEDULES`; raises `InvalidRequest` for another name.

    Parameters that are left out come from `base` if it is of the same kind, else from the schedule's defaults.
    Parameters that the schedule does not have are ignored.
    """
    if name not in SCHEDULES:
        raise InvalidRequest(f"schedule {shown(name)} is not one of {', '.join(SCHEDULES)}")
    kind = SCHEDULES[name]
    own = {field.name for field in fields(kind)}
    given = vars(base) if isinstance(base, kind) else {}
    return kind(**{**given, **{key: value for key, value in parameters.items() if key in own}})


def read_schedule(value: Any) -> SuffixSchedule:
    """Read a schedule from JSON such as `{"gaussian": {"k": 4, "scale": 2}}`; raises `InvalidRequest`."""
    if isinstance(value, Mapping) and len(value) == 1:
        (name, parameters), *_ = value.items()
        own = {field.name for field in fields(SCHEDULES[name])} if name in SCHEDULES else set()
        if name in SCHEDULES and isinstance(parameters, Mapping) and parameters.keys() <= own:
            schedule = SCHEDULES[name](**parameters)
            schedule.check(sys.maxsize, 1)  # no canvas is known yet: a request compares the window with its own
            return schedule
    names = ", ".join(SCHEDULES)
    raise InvalidRequest(
        f"schedule {shown(value)} cannot be read; give an object with one name ({names}) and its parameters"
    )


def name_of(schedule: SuffixSchedule) -> str:
    """The name of a schedule in `SCHEDULES`; `gaussian` for any other."""
    return next((name for name, kind in SCHEDULES.items() if isinstance(schedule, kind)), "gaussian")


def _refusal(options: GenerationOptions, contract: StepContract) -> str:
    """Why `options` cannot be served, empty if they can."""
    try:
        options.check(contract)
    except InvalidRequest as error:
        return str(error)
    return ""


def _check_names(names: Iterable[str]) -> None:
    """Raise `InvalidRequest` for the first of `names` that is not a decoding option."""
    known = list(Options.__annotations__)
    for name in names:
        if name == "suffix":
            raise InvalidRequest(
                "suffix is not a decoding option: text behind the blank is part of the request; "
                "pass model.request(prompt, suffix=...) as the prompt"
            )
        if name not in known:
            meant = instead_of(name) or "".join(f"did you mean {m}?" for m in get_close_matches(name[:40], known, 1))
            hint = f" ({meant})" if meant else ""
            raise InvalidRequest(
                f"{shown(name)[1:-1]} is not a decoding option{hint}; these are known: {', '.join(known)}"
            )


def _schedule(preset: str, value: Any) -> SuffixSchedule:
    if isinstance(value, (Gaussian, Uniform, Full)):
        return value  # from another model's presets, or made by the caller
    try:
        return read_schedule(value)
    except InvalidRequest:
        told = f"preset {shown(preset)} has a schedule that cannot be read: {shown(value)}"
        raise ManifestError(f"{told}; correct it, and export the bundle again") from None
