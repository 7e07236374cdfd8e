"""`Launch`: one step made ready for a compiled engine.

launch.key                           # what a recording of it depends on
plan.bind(context, launch.shape, launch.addresses(contract))
"""

from dataclasses import dataclass

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.gpu.cache import Addition
from dpad.runtime.engines.gpu.graphs import Key
from dpad.runtime.engines.gpu.kv_pool import Buffer
from dpad.runtime.engines.gpu.staging import Field
from dpad.runtime.engines.gpu.step_shape import StepShape


@dataclass(frozen=True)
class Launch:
    """The shape of a step, where every tensor of it lies, and what follows it on the stream."""

    shape: StepShape
    inputs: dict[str, Field]
    outputs: dict[str, Field]
    sent: int  # bytes of `inputs`
    fetched: int  # bytes of `outputs`
    cached: Buffer
    written: Buffer
    logits: Buffer
    addition: Addition | None  # None: the new rows stay where the step writes them

    @property
    def key(self) -> Key:
        """What a recording of this step depends on."""
        buffers = (self.cached, self.written, self.logits)
        strides = tuple(buffer.stride for buffer in buffers)
        return (self.shape, strides), tuple(buffer.address for buffer in buffers)

    def addresses(self, contract: StepContract) -> dict[str, int]:
        """The address of every tensor of the step."""
        addresses = {name: field.address for name, field in (self.inputs | self.outputs).items()}
        caches = [name for pair in contract.cache_names() for name in pair]
        new = [name for pair in contract.new_names() for name in pair]
        addresses |= {name: self.cached.at(i) for i, name in enumerate(caches)}
        addresses |= {name: self.written.at(i) for i, name in enumerate(new)}
        return addresses | {"logits": self.logits.address}
