"""Share of a decode that is not spent inside `Engine.step`.

    python benchmarks/loop_overhead.py bundles/tiny

Cache modes are interleaved; the median over the repetitions counts. The last line of
standard output is one JSON document.
"""

import json
import platform
from statistics import median

import click

import dpad
from dpad.runtime.options import CACHES


@click.command()
@click.argument("directory")
@click.option("--repeat", default=9, show_default=True, help="Decodes of each mode.")
@click.option("--gen-length", default=128, show_default=True, help="New tokens, one committed a step.")
@click.option("--threads", default=1, show_default=True, help="Of the engine.")
def main(directory: str, repeat: int, gen_length: int, threads: int) -> None:
    """Measure the decode loop's overhead on the bundle DIRECTORY."""
    shares: dict[str, list[float]] = {cache: [] for cache in CACHES}
    steps: dict[str, list[float]] = {cache: [] for cache in CACHES}
    with dpad.load(directory, threads=threads) as model:
        for index in range(repeat + 1):
            for cache in CACHES:
                result = model.generate(
                    "Count from 3 to 9.", cache=cache, gen_length=gen_length, decoder="fixed", early_termination=False
                )
                inside = result.timings.refresh + result.timings.denoise
                if index:  # the first decode warms up
                    shares[cache].append(result.timings.loop / inside)
                    steps[cache].append(inside / result.nfe)
        name = model.engine.name
    click.echo(f"{name}, {threads} thread(s), {gen_length} tokens, median of {repeat}")
    for cache in CACHES:
        click.echo(
            f"  {cache:7} step {median(steps[cache]) * 1e3:6.2f} ms, outside it {median(shares[cache]):6.1%} of it"
        )
    document = {
        "benchmark": "loop_overhead",
        "machine": f"{platform.machine()} {platform.system()}",
        "engine": name,
        "threads": threads,
        "repeat": repeat,
        "step_ms": {cache: round(median(steps[cache]) * 1e3, 3) for cache in CACHES},
        "overhead": {cache: round(median(shares[cache]), 4) for cache in CACHES},
        "overhead_worst": {cache: round(max(shares[cache]), 4) for cache in CACHES},
    }
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
