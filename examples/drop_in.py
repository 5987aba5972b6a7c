"""Where a model runs in your own process: `python drop_in.py model.onnx GUARD images.npz`.

The first line is all that changes for a caller of ONNX Runtime; a torch module is wrapped likewise,
`guarded = reluguard.GuardedModule(network, "guards/mine")`.
"""

import sys
from pathlib import Path

import numpy as np

from reluguard import GuardedSession


def main(model: Path, guard: Path, source: Path) -> None:
    """Run the model as ever and look at the verdicts beside."""
    session = GuardedSession(model, guard)  # was: onnxruntime.InferenceSession(model)
    with np.load(source) as arrays:
        tensor = session.guard.spec.to_tensor(arrays["images"])
    (given,) = session.get_inputs()
    scores = session.run(None, {given.name: tensor})[0]
    assert session.verdicts is not None
    flagged = session.verdicts.is_adversarial
    print(f"{flagged.sum()} of {len(flagged)} images flagged")
    print(f"the answers of the others: {np.unique(scores.argmax(axis=1)[~flagged]).tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
