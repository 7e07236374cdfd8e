"""`Machine`: the properties of this computer that decide which compiled engines run on it.

Machine.current().gpu          # Gpu("NVIDIA H100 80GB HBM3", "9.0") or None
"""

import ctypes
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
# Files with the memory limit and use, for control groups of version 2 and 1, and the statistics of page cache in the
# use, which the kernel can reclaim.
_GROUPS = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """Platform tag and first GPU; if there is none, `why_no_gpu` gives the reason."""

    platform: str
    gpu: Gpu | None
    why_no_gpu: str

    @classmethod
    def current(cls) -> "Machine":
        """Query the CUDA driver; works without torch and TensorRT."""
        tag = f"{platform.system().lower()}-{platform.machine().lower()}"
        try:
            return cls(tag, _first_gpu(), "")
        except OSError as error:
            return cls(tag, None, str(error))


def available_memory() -> int:
    """Bytes that can be allocated without swapping, within the control group; `sys.maxsize` if Linux reports none."""
    free = sys.maxsize
    with suppress(OSError, ValueError, IndexError):
        free = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    for limit, used, cached in _GROUPS:
        with suppress(OSError, ValueError):  # the group does not exist, or its limit is "max"
            told = dict(line.split() for line in (_GROUP / limit).with_name("memory.stat").read_text().splitlines())
            files = sum(int(told.get(name, 0)) for name in cached)
            free = min(free, int((_GROUP / limit).read_text()) - int((_GROUP / used).read_text()) + files)
    return free


def library_version(distribution: str) -> str | None:
    """Installed version of a Python distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _first_gpu() -> Gpu:
    """The first CUDA device; raises an `OSError` that gives the reason if there is no usable one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise OSError("no NVIDIA driver (libcuda.so.1) on this machine") from None
    if status := driver.cuInit(0):
        raise OSError(f"the NVIDIA driver does not start (cuInit gave {status})")
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        raise OSError("the NVIDIA driver sees no device")
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(errors="replace"), ".".join(capability))
