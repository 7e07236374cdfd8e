"""`GROUPS`: the parts of gpu-check, in groups that can be run separately, each in at most 200 s.

    for part in GROUPS["tiny"].parts:
        part.name, part.run

Within a group the most important part comes first. A part names its function, whose file is imported only in the
process that runs it, so that a library missing there does not affect other parts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name, title: its key in the document, and the title of its section on the page.
        run: "module:function", called with a `Session`; returns a document, whose `failures` are sentences.
        needs: seconds; with less time left it is not started.
        fresh: whether it starts in a new process.
    """

    name: str
    title: str
    run: str
    needs: float
    fresh: bool = False


@dataclass(frozen=True)
class Group:
    """Parts that run together."""

    title: str
    parts: tuple[Part, ...]


_CEILINGS = Part("ceilings", "Ceilings of the device", "gpu.device:ceilings", 10)

GROUPS = {
    "tiny": Group(
        "The kernel, and every engine over the embedded model",
        (
            _CEILINGS,
            Part("kernel", "Kernel against the definition", "gpu.attention:correctness", 35),
            Part("ptx", "PTX without Triton's launcher", "gpu.attention:ptx", 15),
            Part("speed", "Kernel against PyTorch's attention", "gpu.attention:speed", 15),
            Part("eager", "Decodes through the eager engine", "gpu.decode:eager", 20),
            Part("engines", "Decodes through every other engine", "gpu.decode:compiled", 30, fresh=True),
            Part("recordings", "Recordings against steps launched eagerly", "gpu.recordings:recordings", 15),
            Part("placement", "Where ONNX Runtime runs the nodes of the step", "gpu.decode:placement", 10),
            Part("sweep", "Tiles and splits", "gpu.attention:sweep", 20),
        ),
    ),
    "start": Group(
        "From nothing to the first token of a model of LLaDA-8B's shape, random bfloat16 weights",
        (
            Part("bundle", "Checkpoint and bundle", "gpu.full:make_bundle", 45),
            Part("cold", "From dpad.load to the first token, nothing cached", "gpu.start:cold", 40, fresh=True),
            Part("warm", "From dpad.load to the first token, everything cached", "gpu.start:warm", 25, fresh=True),
        ),
    ),
    "8b": Group(
        "The same model at work",
        (
            _CEILINGS,
            Part("step", "A step against its matrix products alone", "gpu.step:measure", 40, fresh=True),
            Part("end_to_end", "End to end, against the published loop", "gpu.end_to_end:measure", 20),
            Part("concurrent", "Concurrent requests", "gpu.at_once:measure", 10),
            Part("shares", "Where the time of a step goes", "gpu.shares:measure", 8),
        ),
    ),
    "packed": Group(
        "The same model with packed weights",
        (
            _CEILINGS,
            Part("packed_bundle", "Checkpoint and bundle, packed", "gpu.full:make_packed", 60),
            Part("fp8", "fp8", "gpu.precision:fp8", 35, fresh=True),
            Part("int4", "int4", "gpu.precision:int4", 35, fresh=True),
        ),
    ),
}
