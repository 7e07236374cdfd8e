"""One side of `ab.py`: opens a bundle with the package of its own checkout and decodes what it is told, line by line.

    PYTHONPATH=CHECKOUT/src python benchmarks/ab_side.py BUNDLE THREADS

It uses what has been public for long, so that one file serves both sides.
"""

import json
import sys
import time

import dpad


def main() -> None:
    """A line of JSON in is one decode; a line of JSON out is what it took and gave."""
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
