"""What packed weights do to the logits of a model, said beside parity, which leaves it out on purpose.

    packing_error(bundle, "float32-weights-int4", reference, feeds)["packing"]["relative"]     # 0.11

Both sides are eager PyTorch: the packed weights unpacked, and the full ones, in the same dtype.
"""

from typing import Any

import numpy as np

from dpad.export.parity.feeds import Feed
from dpad.models.torch_engine import TorchEngine, open_torch_engine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import FULL, rows_dtype, weights_of


def packing_error(bundle: Bundle, variant: str, packed: TorchEngine, feeds: list[tuple[str, Feed]]) -> dict[str, Any]:
    """`packing`: mean and largest difference of logits over `feeds`, the mean also as a share of their mean size.

    Empty where `variant` packs nothing, or the bundle has no step of full weights in its dtype.
    """
    if weights_of(variant) == FULL or rows_dtype(variant) not in bundle.manifest.steps:
        return {}
    full = open_torch_engine(bundle, rows_dtype(variant))
    place = [spec.name for spec in full.contract.outputs()].index("logits")
    pairs = [(full.run(feed)[place], packed.run(feed)[place]) for _, feed in feeds]
    return {"packing": logit_error(pairs)}


def logit_error(pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> dict[str, float]:
    """Of (wanted, found) logits, [B, R, V] each: `mean_abs`, `max_abs`, and `relative`, the mean over their size."""
    differences = [np.abs(found.astype(np.float64) - wanted) for wanted, found in pairs]
    mean = float(np.mean([difference.mean() for difference in differences]))
    return {
        "mean_abs": mean,
        "max_abs": float(max(difference.max() for difference in differences)),
        "relative": mean / float(np.mean([np.abs(wanted).mean() for wanted, _ in pairs])),
    }
