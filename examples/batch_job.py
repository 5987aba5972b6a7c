"""A batch job: `python batch_job.py ADDRESS images.npz verdicts.npz`.

The same function is what `mapPartitions` of Spark or `map_batches` of Ray Data would call.
"""

import sys
from pathlib import Path

import numpy as np

from reluguard import Client


def main(address: str, source: Path, out: Path) -> None:
    """Score every image of an npz, in requests no larger than the server allows."""
    with np.load(source) as arrays:
        images = arrays["images"]
    with Client(address) as client:
        rows = client.describe().limits.max_rows
        parts = [client.inspect(images[i : i + rows]) for i in range(0, len(images), rows)]
    flagged = np.concatenate([part.is_adversarial for part in parts])
    prediction = np.concatenate([part.prediction for part in parts])
    np.savez(out, is_adversarial=flagged, prediction=prediction)
    print(f"{flagged.sum()} of {len(flagged)} images flagged")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
