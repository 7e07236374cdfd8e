"""`TimingCache`: the times of kernels on this GPU, kept between builds of TensorRT.

    timings = TimingCache(trt, "9.0")
    timings.attach(config)          # before a build
    timings.save(config)            # after it

There is one file per library, version and compute capability, in the user's cache folder. A file that is missing,
unreadable or from another GPU counts as empty. TensorRT-RTX does not use it: it times nothing when it builds, and its
timing caches have had no effect since 1.2.
"""

from contextlib import suppress
from types import ModuleType
from typing import Any

from dpad.runtime.engines import user_cache


class TimingCache:
    """The timings of one library on one kind of GPU."""

    def __init__(self, trt: ModuleType, capability: str) -> None:
        self.name = f"timing-{trt.__name__}-{trt.__version__}-{capability}.cache"
        self._unused = trt.__name__ == "tensorrt_rtx"

    def attach(self, config: Any) -> None:
        """Give the builder the timings of earlier builds."""
        if not self._unused and not self._set(config, user_cache.read(self.name)):
            self._set(config, b"")

    def save(self, config: Any) -> None:
        """Save the timings of this build; a failure to save is ignored, since a cache is only a shortcut."""
        if self._unused:
            return
        timings = config.get_timing_cache()
        if timings is not None and (data := timings.serialize()) is not None:
            user_cache.write(self.name, bytes(data))

    @staticmethod
    def _set(config: Any, data: bytes) -> bool:
        with suppress(TypeError, ValueError, RuntimeError):  # the bindings raise these for a file they refuse
            timings = config.create_timing_cache(data)
            return timings is not None and bool(config.set_timing_cache(timings, False))
        return False
