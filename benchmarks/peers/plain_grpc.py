"""What one writes in an afternoon: grpc.aio over `session.run`, no batching. Runs in our own venv.

python -m benchmarks.peers.plain_grpc GUARDED.onnx PORT INPUT
"""

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort

from reluguard.service.protocols.pb import open_inference as pb


async def main(path: str, port: str, name: str) -> None:
    """Serve ModelInfer until killed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def infer(request: pb.ModelInferRequest, _: Any) -> pb.ModelInferResponse:
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(
            request.inputs[0].shape
        )
        names = [output.name for output in request.outputs]
        values = await asyncio.to_thread(session.run, names, {name: x})
        kinds = {"f": "FP32", "b": "BOOL"}
        return pb.ModelInferResponse(
            model_name=request.model_name,
            id=request.id,
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(
                    name=output, datatype=kinds[value.dtype.kind], shape=value.shape
                )
                for output, value in zip(names, values, strict=True)
            ],
            raw_output_contents=[value.tobytes() for value in values],
        )

    handler = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService", {"ModelInfer": handler}
            ),
        )
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
