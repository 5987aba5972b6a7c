"""All-pairs Hamming counts: ours on packed bits against SciPy's cdist on bool, one thread each.

    OMP_NUM_THREADS=1 python benchmarks/hamming.py

The machine's limit is the float32 product of the unpacked bits with themselves, which BLAS does for
all pairs where counting needs half. SciPy takes a quarter of an hour for 2,000 patterns, so by
default it is timed on the first rows against all columns and scaled by the rows that are left out;
`--full` times all of it.
"""

import argparse
import json
import resource
import time

import numpy as np
from scipy.spatial.distance import cdist

from reluguard.training.analysis.similarity import hamming_counts


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--bits", type=int, default=188_416)
    parser.add_argument("--rows", type=int, default=10, help="rows SciPy is timed on")
    parser.add_argument("--full", action="store_true", help="time SciPy on all rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = options.images if options.full else min(options.rows, options.images)
    generator = np.random.default_rng(0)
    active = generator.integers(0, 2, (options.images, options.bits), dtype=np.uint8).view(np.bool_)
    packed = np.packbits(active, axis=1)

    start = time.perf_counter()
    ours = hamming_counts(packed)
    ours_s = time.perf_counter() - start

    start = time.perf_counter()
    theirs = cdist(active[:rows], active, "hamming")
    theirs_s = (time.perf_counter() - start) * options.images / rows

    start = time.perf_counter()
    part = np.zeros((options.images, options.images), np.float32)
    product_s = 0.0
    for column in range(0, options.bits, 8192):
        x = active[:, column : column + 8192].astype(np.float32)
        inner = time.perf_counter()
        part += x @ x.T
        product_s += time.perf_counter() - inner
    unpacked_s = time.perf_counter() - start

    assert np.array_equal(np.rint(theirs * options.bits).astype(np.int64), ours[:rows])
    result = {
        "images": options.images,
        "bits": options.bits,
        "ours_s": round(ours_s, 2),
        "scipy_cdist_s": round(theirs_s, 2),
        "matrix_product_s": round(product_s, 2),
        "matrix_product_with_conversion_s": round(unpacked_s, 2),
        "times_faster_than_scipy": round(theirs_s / ours_s, 1),
        "of_matrix_product": round(ours_s / product_s, 2),
        "scipy_rows_timed": rows,
        "peak_rss_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:34}{value:>12}")


if __name__ == "__main__":
    main()
