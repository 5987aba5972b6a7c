"""NVIDIA Triton through nvidia-pytriton, the model in Python. Runs in its own venv.

python pytriton_server.py GUARDED.onnx PORT INPUT OUTPUT,...
"""

import sys

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

DTYPES = {"tensor(float)": np.float32, "tensor(bool)": np.bool_}


def main(path: str, port: str, name: str, outputs: str) -> None:
    """Serve until killed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = outputs.split(",")
    shapes = {value.name: value for value in (*session.get_inputs(), *session.get_outputs())}

    def tensor(wanted: str) -> Tensor:
        found = shapes[wanted]
        rest = tuple(size if isinstance(size, int) else -1 for size in found.shape[1:])
        return Tensor(name=wanted, dtype=DTYPES[found.type], shape=rest or (1,))

    @batch
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        values = session.run(names, {name: inputs[name]})
        # pytriton wants a dimension behind N
        return {
            wanted: value if value.ndim > 1 else value[:, None]
            for wanted, value in zip(names, values, strict=True)
        }

    here = "127.0.0.1"
    config = TritonConfig(
        grpc_address=here, http_address=here, metrics_address=here,
        grpc_port=int(port), http_port=int(port) + 1, metrics_port=int(port) + 2,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[tensor(name)],
            outputs=[tensor(wanted) for wanted in names],
            config=ModelConfig(
                max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main(*sys.argv[1:5])
