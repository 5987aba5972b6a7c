"""A real browser, for tests and for the pictures of docs/: Chromium without a window.

It is told what to do through its pipe, the DevTools protocol in NUL-ended JSON on file descriptors
3 and 4; no driver has to be installed.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

__all__ = ["Browser", "browser_path", "opened_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WAIT_S = 60.0


def browser_path() -> str | None:
    """Return where a Chromium lies on this machine, None if there is none."""
    found = (shutil.which(name) for name in NAMES)
    return next((path for path in found if path is not None), None)


class Browser:
    """One page of a running browser."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process = process
        self._write = write
        self._read = read
        self._numbers = itertools.count(1)
        self._replies: Queue[dict[str, Any]] = Queue()
        self._said: Queue[dict[str, Any]] = Queue()
        self._session: str | None = None
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def _listen(self) -> None:
        rest = b""
        while part := os.read(self._read, 65536):
            *messages, rest = (rest + part).split(b"\0")
            for message in messages:
                told = json.loads(message)
                (self._replies if "id" in told else self._said).put(told)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Return what a method of the protocol gives."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._replies.get(timeout=WAIT_S)
            if reply["id"] == number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                found: dict[str, Any] = reply["result"]
                return found

    def evaluate(self, script: str) -> Any:
        """Return what a script, or the promise it makes, comes to."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page, and return when it is loaded."""
        self.call("Page.navigate", url=url)
        told: list[dict[str, Any]] = []
        while not told or told[-1]["method"] != "Page.loadEventFired":
            told.append(self._said.get(timeout=WAIT_S))
        for message in told[:-1]:  # the next page is not loaded because this one is
            self._said.put(message)

    def until(self, condition: str) -> None:
        """Return when a condition holds, which the page itself watches at every frame."""
        self.evaluate(
            "new Promise((done, failed) => { const end = Date.now() + 50000; const look = () => "
            f"{{ if ({condition}) done(true); else if (Date.now() > end) failed('never'); "
            "else setTimeout(look, 50); }; look(); })"
        )

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file, as a person does in the dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def complaints(self) -> list[str]:
        """Return the errors that the page or its policy raised until now."""
        found: list[str] = []
        while True:
            try:
                told = self._said.get_nowait()
            except Empty:
                return found
            if told["method"] == "Runtime.exceptionThrown":
                found.append(str(told["params"]["exceptionDetails"]))
            if told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                found.append(str(told["params"]["entry"]["text"]))

    def resize(self, width: int, height: int) -> None:
        """Give the page a screen of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def emulate(self, *, scheme: str = "light", media: str = "") -> None:
        """Show pages as in a light or dark scheme, and as on a screen or in "print"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def picture(self, file: Path, *, height: int | None = None) -> None:
        """Write what the page looks like, PNG: so much of its top, or all of its length."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        top = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"]}
        found = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip=top | {"scale": 1},
        )
        file.write_bytes(base64.b64decode(found["data"]))

    def print(self, file: Path) -> None:
        """Write the page as it is printed, PDF on A4."""
        found = self.call(
            "Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True
        )
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def opened_browser(path: str, folder: Path) -> Iterator[Browser]:
    """Give a browser with a new profile in a folder, and end it afterwards."""
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-extensions "
        "--hide-scrollbars --disable-background-networking --remote-debugging-pipe"
    )
    command = f'exec "$0" {flags} --user-data-dir="$1" 3<&{theirs_read} 4>&{theirs_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, path, str(folder)],
        pass_fds=(theirs_read, theirs_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        yield Browser(process, ours_write, ours_read)
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours_write)
