"""Looks at what was captured now and then: how much waits for labels, whether traffic drifted."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path

from reluguard.detector.errors import DetectorError
from reluguard.detector.runtime import Guard
from reluguard.service.captures.counts import CaptureStatus, count_captures
from reluguard.service.captures.drift import Drift, read_drift

__all__ = ["CaptureReader"]

_log = logging.getLogger(__name__)


class CaptureReader:
    """What was last read of one capture folder, by name of the model.

    Args:
        folder: of captures.
        reader: does the reading.
        drifted: told of each model's drift.

    Attributes:
        drift: how far traffic is from calibration.
        captured: how much there is.
    """

    def __init__(
        self, folder: Path, reader: Executor, drifted: Callable[[str, Drift], None]
    ) -> None:
        self._folder, self._reader, self._drifted = folder, reader, drifted
        self.drift: dict[str, Drift] = {}
        self.captured: dict[str, CaptureStatus] = {}

    async def read(self, guards: Mapping[str, Guard]) -> None:
        """Look anew; of a folder that can't be read what was read last stays.

        Args:
            guards: those that are live, by name of the model.
        """
        loop = asyncio.get_running_loop()
        for name, guard in guards.items():
            model = guard.artifact.manifest.model_sha256
            try:
                drift = await loop.run_in_executor(self._reader, read_drift, self._folder, guard)
                captured = await loop.run_in_executor(
                    self._reader, count_captures, self._folder, model
                )
            except (sqlite3.Error, DetectorError) as error:
                _log.error("the captures of %s can't be read: %s", name, error)
            else:
                self.drift[name], self.captured[name] = drift, captured
                self._drifted(name, drift)
