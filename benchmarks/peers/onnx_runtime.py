"""A custom MLServer runtime over ONNX Runtime, one thread. Runs in MLServer's own venv."""

import asyncio
import os

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """Serves the file that BENCHMARK_MODEL names and gives back what BENCHMARK_OUTPUTS lists.

    The outputs are fixed because MLServer's batching does not pass on the requested ones.
    """

    async def load(self) -> bool:
        """Open the session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            os.environ["BENCHMARK_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.names = os.environ["BENCHMARK_OUTPUTS"].split(",")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run one batch off the event loop."""
        feeds = {payload.inputs[0].name: NumpyCodec.decode_input(payload.inputs[0])}
        values = await asyncio.to_thread(self.session.run, self.names, feeds)
        outputs = [
            NumpyCodec.encode_output(name, value)
            for name, value in zip(self.names, values, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
