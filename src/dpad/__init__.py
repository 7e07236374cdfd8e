"""dpad: masked-diffusion language models with suffix dropout (DPad), ready to serve.

    model = dpad.load("bundles/tiny")
    print(model.generate("What is 53 + 34?").text)

This module is the public interface; everything else may change between versions.
"""

from importlib import metadata

from dpad._load import load
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.decoding.event import Generation, StepEvent, Timings
from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import Explicit, Full, Gaussian, SuffixSchedule, Uniform
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import DpadError, InvalidRequest
from dpad.runtime.model import DiffusionModel
from dpad.runtime.text.codec import TextCodec

try:
    __version__ = metadata.version("dpad")
except metadata.PackageNotFoundError:  # run from a checkout, as `make gpu-check` does
    __version__ = "0+checkout"

__all__ = [
    "Bundle",
    "DiffusionModel",
    "DpadError",
    "Engine",
    "Explicit",
    "Full",
    "Gaussian",
    "Generation",
    "GenerationOptions",
    "InvalidRequest",
    "Options",
    "Request",
    "StepEvent",
    "SuffixSchedule",
    "TextCodec",
    "Timings",
    "Uniform",
    "errors",
    "load",
]
