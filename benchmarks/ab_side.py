"""One side of `ab.py`: opens a bundle with the package of its own checkout, and runs one decode for each line of input.

    PYTHONPATH=CHECKOUT/src python benchmarks/ab_side.py BUNDLE THREADS

It uses only old parts of the public interface, so that the same file works with both checkouts.
"""

import json
import sys
import time

import dpad


def main() -> None:
    """Read a line of JSON for each decode, and write a line of JSON with its times and result."""
    directory, threads = sys.argv[1:]
    with dpad.load(directory, engine="onnxruntime-cpu", threads=int(threads)) as model:
        for line in sys.stdin:
            asked = json.loads(line)
            thin = asked["options"].pop("thin")
            schedule = dpad.Gaussian(**thin) if thin else dpad.Full()
            began = time.perf_counter()
            result = model.generate(asked["prompt"], schedule=schedule, **asked["options"])
            seconds = time.perf_counter() - began
            timings, canvas = result.timings, [int(token) for token in result.canvas]
            inside = timings.refresh + timings.denoise
            found = {"seconds": seconds, "inside": inside, "nfe": result.nfe, "canvas": canvas}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
