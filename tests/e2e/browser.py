"""A headless Chromium, driven by its DevTools protocol: what a page shows, asks for and complains about.

Consumes URLs and JavaScript; produces values, pictures, and what came up meanwhile. Nothing waits without a deadline.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

START_S, ANSWER_S = 20.0, 10.0
MOST_BYTES = 64 * 1024 * 1024
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    """Its path; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium (or put a chrome of yours on PATH)")
    return found


class Browser:
    """`with Browser(folder) as browser:`; `folder` gets its profile. One page at a time."""

    def __init__(self, folder: Path) -> None:
        self.errors: list[str] = []
        """What the page's console or the browser complained about."""
        self.asked: list[str] = []
        """The URLs that the page asked for."""
        self._count = 0
        self._process = subprocess.Popen(
            [
                chromium(), "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}",
                "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-gpu",
                "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-component-update", "--disable-sync",
                *(["--no-sandbox"] if os.geteuid() == 0 or Path("/.dockerenv").exists() else []), "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._folder, self._open, self._session = folder, ExitStack(), ""
        try:
            address = self._address()
            self._socket = self._open.enter_context(
                connect(address, max_size=MOST_BYTES, open_timeout=ANSWER_S, proxy=None)
            )
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise

    def _address(self) -> str:
        """Chromium writes down where it listens: the port, and the path."""
        file, end_s = self._folder / "DevToolsActivePort", time.monotonic() + START_S
        while True:
            with suppress(OSError, ValueError):
                port, path = file.read_text().split()
                return f"ws://127.0.0.1:{port}{path}"
            if self._process.poll() is not None:
                pytest.skip(f"Chromium does not start here (exit code {self._process.returncode})")
            assert time.monotonic() < end_s, "Chromium does not say where it listens"
            time.sleep(0.05)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; what comes meanwhile is noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        end_s = time.monotonic() + ANSWER_S
        while True:
            got = json.loads(self._socket.recv(timeout=max(0.01, end_s - time.monotonic())))
            if got.get("id") == self._count:
                assert "error" not in got, f"{method}: {got['error']}"
                return dict(got["result"])
            self._note(got.get("method", ""), got.get("params", {}))

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str([each.get("value") for each in about["args"]]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def open(self, url: str, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Show a page in a window of that size."""
        self.resize(width, height, scheme)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """Another window, or another colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        """Of an expression, awaited if it is a promise."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def until(self, expression: str, limit_s: float = 15.0) -> None:
        """Until it is true."""
        end_s = time.monotonic() + limit_s
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < end_s, f"not within {limit_s} s: {expression}\n{self.text('body')[:3000]}"
            time.sleep(0.05)

    def until_text(self, selector: str, pattern: str, limit_s: float = 15.0) -> None:
        """Until the text there has the pattern."""
        end_s = time.monotonic() + limit_s
        while not re.search(pattern, self.text(selector)):
            assert time.monotonic() < end_s, f"no {pattern!r} within {limit_s} s in: {self.text(selector)[:3000]}"
            time.sleep(0.05)

    def picture(self, file: Path, whole: bool = True) -> None:
        """A PNG of the page, all of it or what the window shows."""
        got = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, optimizeForSpeed=False)
        file.write_bytes(base64.b64decode(got["data"]))

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        with suppress(WebSocketException, OSError, TimeoutError):
            self._open.close()
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
