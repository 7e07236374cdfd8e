"""Predicts a model's memory and the least time of a step from config.json alone, without weights or a GPU.

    sizes = Sizes.of(architecture, config)
    memory(sizes, "bfloat16", Load(batch=1, length=1024)).total        # bytes on the device
    floor(sizes, "bfloat16-weights-int4", GPUS["H100"], Load(1, 1024), "dual", shift=0).milliseconds

Weights, caches and logits are counted as the engine allocates them. Activations and the builder's memory are fitted
to TensorRT-RTX builds of the published widths (benchmarks/forecast.py measures the error); other builders may take
more or less. A floor follows from data sheets: no step can be faster, and real steps are slower.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpad.export.forecast.gpus import GpuModel
from dpad.export.step.pack import Packing
from dpad.models.checkpoint.checkpoint import Config, meta_model
from dpad.plugins import tiling
from dpad.plugins.tiling import PLUGIN_SPLITS
from dpad.runtime.bundle.variant import FULL, rows_dtype, weights_of
from dpad.runtime.cache import BLOCKS, block_view
from dpad.runtime.decoding.suffix import Gaussian
from dpad.runtime.engines.gpu.graphs import MOST
from dpad.runtime.engines.slots import ITEM_BYTES

PASS_ROWS = 1200  # the most rows of a forward pass over several sequences; see `GpuEngine`
MODES = ("vanilla", "none", "prefix", "dual")
BLOCK_CAUSAL = (BLOCKS,)  # modes of block-causal models
FITTED_WIDTH = 2048  # the smallest hidden size for which activations are predicted well
_BITS = {"int8": 8, "int4": 4, "fp8": 8}
_RECORDED = 16 * 2048  # bytes per layer of a recording, for its kernels and arguments; assumed, not measured
_BUILDER = 500_000_000  # bytes that the builder takes whatever the model


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that decide its cost: numbers of weights, and widths of rows.

    Attributes:
        weights: number of all weights.
        products: number of weights in the layers' matrices, which every row is multiplied with; these matrices have
            `outputs` outputs in total.
        head: number of weights of the vocabulary projection, which only decoded rows are multiplied with.
        attended: width of all heads together, H · D; `heads` is H.
        cached: elements of the keys and values of one position, over all layers.
    """

    layers: int
    weights: int
    products: int
    outputs: int
    head: int
    width: int
    mlp_width: int
    vocab_size: int
    attended: int
    heads: int
    cached: int

    @classmethod
    def of(cls, architecture: str, config: Config) -> "Sizes":
        """The sizes of a model, counted on the family's module, which is built without storage."""
        state = meta_model(architecture, config).state_dict()
        inside = {name for name, w in state.items() if w.ndim == 2 and (".blocks." in name or ".layers." in name)}
        return cls(
            layers=config.layers,
            weights=sum(weight.numel() for weight in state.values()),
            products=sum(state[name].numel() for name in inside),
            outputs=sum(state[name].shape[0] for name in inside),
            head=config.vocab_size * config.width,
            width=config.width,
            mlp_width=config.mlp_width,
            vocab_size=config.vocab_size,
            attended=config.heads * config.head_size,
            heads=config.heads,
            cached=2 * config.layers * config.kv_heads * config.head_size,
        )


@dataclass(frozen=True)
class Load:
    """What is decoded together: `batch` canvases of `length` tokens each, prompt included, block by block."""

    batch: int
    length: int
    block: int = 32
    window: int = 256


@dataclass(frozen=True)
class Memory:
    """Device memory, in bytes, of an engine exported with these limits, while one batch is decoded.

    `parts` are the partial results of a layer's attention, which this project's plugin combines.
    """

    weights: int
    caches: int
    activations: int
    recordings: int
    parts: int = 0

    @property
    def total(self) -> int:
        """The sum; it does not include the CUDA context and the kernels."""
        return self.weights + self.caches + self.activations + self.recordings + self.parts


@dataclass(frozen=True)
class Floor:
    """The least time of a step in milliseconds, its bound (`memory` or `products`), and its numbers of rows Q and K."""

    milliseconds: float
    bound: str
    queries: int
    cached: int


def stored(sizes: Sizes, variant: str) -> int:
    """Bytes of the weights of a variant of the step, scales of packed ones included."""
    item, weights = ITEM_BYTES[rows_dtype(variant)], weights_of(variant)
    if weights == FULL:
        return sizes.weights * item
    scales = sizes.outputs if weights == "fp8" else sizes.products // Packing.group
    return (sizes.weights - sizes.products + scales) * item + sizes.products * _BITS[weights] // 8


def memory(sizes: Sizes, variant: str, load: Load, plugin: bool = False) -> Memory:
    """The memory of an engine whose limits are those of `load`; `plugin`: a TensorRT engine with this project's kernel.

    The pool has a slot for every token, and the new rows of one forward pass have memory of their own. On a GPU with
    less memory an engine opens with a smaller pool, as long as one canvas fits.
    """
    item = ITEM_BYTES[rows_dtype(variant)]
    rows = load.batch * load.length
    cached = rows + min(rows, max(load.length, PASS_ROWS)) + 1
    logits = load.batch * min(load.block, load.length) * sizes.vocab_size * 4
    live = 3 * sizes.mlp_width + 2 * sizes.width + 2 * sizes.cached // sizes.layers  # elements a row, at the MLP
    # Recordings (CUDA graphs) have activation memory of their own, which they all share.
    recordings = min(rows, max(load.length, PASS_ROWS)) * live * item + MOST * sizes.layers * _RECORDED
    parts = _parts(sizes, rows) if plugin else 0
    return Memory(stored(sizes, variant), cached * sizes.cached * item + logits, rows * live * item, recordings, parts)


def _parts(sizes: Sizes, rows: int) -> int:
    """Bytes of attention's partial results over `rows` = B · Q, in float32 with their weights, on the largest GPU."""
    counts = [int(tiling.part_rows(rows * sizes.heads, PLUGIN_SPLITS, each)) for each in tiling.CAPABILITIES]
    return 4 * max(counts) * (sizes.attended // sizes.heads + 1)


def building(weights: int, packed: Mapping[str, int]) -> int:
    """Bytes of memory that TensorRT-RTX takes to build a plan of `weights` bytes: a copy of the weights, and the plan.

    `packed` maps a format to its number of weights. The builder also unpacks some int4 weights, to at most one byte
    each, and stores most int8 weights in 16 bit.
    """
    return 2 * (weights + packed.get("int8", 0)) + packed.get("int4", 0) + _BUILDER


def predicted_building(sizes: Sizes, variant: str) -> int:
    """`building` for the plan of a variant, from the model's sizes."""
    return building(stored(sizes, variant), {weights_of(variant): sizes.products})


def floor(sizes: Sizes, variant: str, gpu: GpuModel, load: Load, mode: str, shift: int) -> Floor:
    """The least time of a step for the block in the middle of the canvas.

    The step reads the weights and the attended rows of the cache once, and computes every product once. `vanilla`
    keeps the whole suffix, `blocks` (block-causal models) none of it, and the other modes what the default schedule
    keeps on average. A refresh costs as much as a step of `none` or `blocks`.
    """
    queries, cached = _rows(load, mode, shift)
    rows = load.batch * queries
    looked_up = sizes.weights - sizes.products - sizes.head  # embeddings; norms and biases too, which are small
    moved = stored(sizes, variant) + ITEM_BYTES[rows_dtype(variant)] * (load.batch * cached * sizes.cached - looked_up)
    work = sizes.products * rows + sizes.head * load.batch * min(load.block, load.length)
    work += 2 * sizes.layers * sizes.attended * rows * (queries + cached)
    seconds = {"memory": moved / gpu.bandwidth / 1e9, "products": 2 * work / gpu.products / 1e12}
    bound = max(seconds, key=lambda name: seconds[name])
    return Floor(1e3 * seconds[bound], bound, queries, cached)


def _rows(load: Load, mode: str, shift: int) -> tuple[int, int]:
    """The numbers of query rows Q and cache rows K of a step of `mode`."""
    start = load.length // 2 // load.block * load.block
    end = min(start + load.block, load.length)
    suffix = load.length - end
    kept = 0 if mode == BLOCKS else suffix
    if mode not in ("vanilla", BLOCKS) and suffix:
        window = min(load.window, suffix)
        kept = round(float(Gaussian(window=window).probabilities(suffix, load.length).clip(max=1).sum()))
    policy = "none" if mode == "vanilla" else mode
    view = block_view(policy, policy == "none", start, end, np.arange(end, end + kept), shift)
    return len(view.queries), len(view.cached)
