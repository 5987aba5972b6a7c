"""An existing tritonclient caller, the verdict one more output: ADDRESS MODEL images.npz."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def main(address: str, model: str, source: Path) -> None:
    """Send uint8 pixels and print the verdicts."""
    with np.load(source) as arrays:
        images = arrays["images"]
    client = triton.InferenceServerClient(address)
    name = client.get_model_metadata(model).inputs[0].name
    given = triton.InferInput(name, list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    wanted = [triton.InferRequestedOutput("reluguard_is_adversarial")]
    flagged = client.infer(model, [given], outputs=wanted).as_numpy("reluguard_is_adversarial")
    print(f"{flagged.sum()} of {len(flagged)} images flagged")
    client.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
