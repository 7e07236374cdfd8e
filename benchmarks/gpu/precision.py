"""The large model with packed weights: start, memory, a step compared with its products alone, and a decode.

The group 8b measures the same numbers with full weights.
"""

from typing import Any

from dpad.models.checkpoint.checkpoint import parse_config
from gpu import start
from gpu.end_to_end import own
from gpu.full import packed_of
from gpu.session import Session
from gpu.step import CACHED, Steps, modes, products, widths


def fp8(session: Session) -> dict[str, Any]:
    """float8 weights with a scale per output; rows are rounded to float8 too, so that products are in float8."""
    return _measure(session, "fp8", ("fp8",))


def int4(session: Session) -> dict[str, Any]:
    """4-bit weights with a scale for every 32 inputs of an output."""
    return _measure(session, "int4", ())


def _measure(session: Session, form: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    sizes = session.setup.sizes
    if form not in sizes.packed:
        return {"skipped": f"there is no bundle with {form} weights here"}
    _, config = parse_config(session.once(packed_of).manifest.model_config)
    found = start.load(session, "packed", f"{sizes.engine}-weights-{form}")
    model = found.pop("model")
    steps, rows = Steps(model.engine, sizes), {m: len(queries) for m, (queries, _) in modes(sizes).items()}
    alone = products(widths(config), sorted({rows[mode] for mode in CACHED}), kinds)
    timed = {}
    for mode in CACHED:
        timed[mode] = {"step_ms": steps.milliseconds(mode), "queries": rows[mode]}
        for kind in kinds:
            timed[mode][f"products_{kind}_ms"] = alone[rows[mode]][kind]
            timed[mode]["over_products"] = timed[mode]["step_ms"] / alone[rows[mode]][kind]
    steps.close()
    return {**found, "modes": timed, "decoders": {cache: own(model, sizes, cache) for cache in CACHED}}
