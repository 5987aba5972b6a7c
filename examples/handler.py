"""A web handler that asks the guard: `app.post("/classify")(Classifier(address))` in FastAPI.

The framework only has to await `__call__` with the uploaded file's bytes.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from reluguard import AsyncClient


class Classifier:
    """Answers one upload. One client for all requests: it keeps its connection."""

    def __init__(self, address: str) -> None:
        self._client = AsyncClient(address)

    async def __call__(self, body: bytes) -> dict[str, Any]:
        """Return the class, or a refusal where the image looks adversarial."""
        verdict = (await self._client.inspect_encoded([body]))[0]
        if verdict.is_adversarial:
            return {"error": "this image looks manipulated", "likelihood": verdict.likelihood}
        return {"class": verdict.prediction, "likelihood": verdict.likelihood}

    async def close(self) -> None:
        """Close the connection: FastAPI's shutdown event."""
        await self._client.close()


async def main(address: str, body: bytes) -> None:
    """Classify one file's bytes as the web framework would."""
    classify = Classifier(address)
    print(await classify(body))
    await classify.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
