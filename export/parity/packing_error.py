"""Measures how packed weights change a model's logits; parity reports this error but does not judge it.

    packing_error(bundle, "float32-weights-int4", reference, feeds)["packing"]["relative"]     # 0.11

Both sides run in eager PyTorch in the same dtype: one with the packed weights unpacked, one with the full weights.
"""

from typing import Any

import numpy as np

from dpad.export.parity.feeds import Feed
from dpad.models.torch_engine import TorchEngine, open_torch_engine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import FULL, rows_dtype, weights_of


def packing_error(bundle: Bundle, variant: str, packed: TorchEngine, feeds: list[tuple[str, Feed]]) -> dict[str, Any]:
    """The `logit_error` of `variant` over `feeds`, under the key `packing`.

    Empty if `variant` packs nothing, or if the bundle has no step with full weights in its dtype.
    """
    if weights_of(variant) == FULL or rows_dtype(variant) not in bundle.manifest.steps:
        return {}
    full = open_torch_engine(bundle, rows_dtype(variant))
    place = [spec.name for spec in full.contract.outputs()].index("logits")
    pairs = [(full.run(feed)[place], packed.run(feed)[place]) for _, feed in feeds]
    return {"packing": logit_error(pairs)}


def logit_error(pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> dict[str, float]:
    """Differences of (wanted, found) logits, [B, R, V] each: `mean_abs`, `max_abs`, and `relative` to the mean size."""
    differences = [np.abs(found.astype(np.float64) - wanted) for wanted, found in pairs]
    mean = float(np.mean([difference.mean() for difference in differences]))
    return {
        "mean_abs": mean,
        "max_abs": float(max(difference.max() for difference in differences)),
        "relative": mean / float(np.mean([np.abs(wanted).mean() for wanted, _ in pairs])),
    }
