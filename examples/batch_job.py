"""A batch job: `python batch_job.py ADDRESS images.npz verdicts.npz`.

`Score` is what Ray Data's `map_batches` and Spark's `mapPartitions` call: made once per worker, so
that each keeps one connection, then called with batches of columns.

    import ray
    data = ray.data.from_numpy(images)                    # a column "data", (N, H, W, C)
    data.map_batches(Score, fn_constructor_args=[address], batch_size=256, concurrency=4)
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reluguard import Client

Columns = dict[str, NDArray[np.generic]]


class Score:
    """Adds the columns `prediction` and `is_adversarial` to a batch."""

    def __init__(self, address: str, column: str = "data") -> None:
        self._client = Client(address, deadline_s=60)
        self._column = column

    def __call__(self, batch: Columns) -> Columns:
        """Return the batch with its verdicts; requests keep to the server's limits."""
        verdicts = self._client.inspect(np.asarray(batch[self._column], np.uint8))
        return batch | {
            "prediction": verdicts.prediction,
            "is_adversarial": verdicts.is_adversarial,
        }


def main(address: str, source: Path, out: Path, *, batch_size: int = 256) -> None:
    """Score every image of an npz."""
    with np.load(source) as arrays:
        images = arrays["images"]
    score = Score(address)
    starts = range(0, len(images), batch_size)
    parts = [score({"data": images[start : start + batch_size]}) for start in starts]
    flagged = np.concatenate([part["is_adversarial"] for part in parts])
    prediction = np.concatenate([part["prediction"] for part in parts])
    np.savez(out, is_adversarial=flagged, prediction=prediction)
    print(f"{flagged.sum()} of {len(flagged)} images flagged")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
