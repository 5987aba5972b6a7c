"""A web service that asks the guard before it answers: `uvicorn handler:app`, with FastAPI.

    RELUGUARD_ADDRESS=127.0.0.1:50051 uvicorn handler:app
    curl --data-binary @cat.jpg http://127.0.0.1:8000/classify

Without a web framework: `python handler.py ADDRESS cat.jpg`.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
        """Close the connection: the service's shutdown."""
        await self._client.close()


def make_app(address: str) -> Any:
    """Return the web service, a FastAPI application."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        app.state.classify = Classifier(address)
        yield
        await app.state.classify.close()

    app = FastAPI(lifespan=connected)

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        """Answer one uploaded JPEG or PNG: 422 where it looks adversarial."""
        answer = await request.app.state.classify(await request.body())
        return JSONResponse(answer, status_code=422 if "error" in answer else 200)

    return app


def __getattr__(name: str) -> Any:
    """Make `app` when uvicorn asks for it."""
    if name != "app":
        raise AttributeError(name)
    return make_app(os.environ.get("RELUGUARD_ADDRESS", "127.0.0.1:50051"))


async def main(address: str, body: bytes) -> None:
    """Classify one file's bytes as the web framework would."""
    classify = Classifier(address)
    print(await classify(body))
    await classify.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
