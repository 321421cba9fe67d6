"""A headless Chromium, driven over its debugging pipe: nothing but the browser is needed."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT_S = 60.0


def browser_path() -> str | None:
    """The browser that this machine has."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One tab. `complaints` is what the console or the browser itself has complained of."""

    def __init__(self, process: subprocess.Popen[bytes], to_it: int, from_it: int) -> None:
        self.process = process
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._to_it, self._from_it = to_it, from_it
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply)
                result: dict[str, Any] = reply["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            ready, _, _ = select.select([self._from_it], [], [], max(0.0, left_s))
            assert ready, "the browser says nothing"
            chunk = os.read(self._from_it, 1 << 16)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.complaints.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error"):
            self.complaints.append(json.dumps(params["args"]))
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(
        self,
        file: Path,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        medium: str = "screen",
    ) -> None:
        """Open a file, as by a double click; `print` is the other medium."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 700,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=medium, features=[scheme])
        self.send("Page.navigate", url=file.resolve().as_uri())
        deadline_s = time.monotonic() + _TIMEOUT_S
        while self.run("document.readyState") != "complete" or self.run("location.href") in (
            "about:blank",
        ):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page; returns its value."""
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, as on a keyboard."""
        codes = {"Tab": 9, "Escape": 27, "Home": 36, "End": 35, "Enter": 13, " ": 32}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        self.send(
            "Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {})
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def point(self, selector: str, *, click: bool = False) -> None:
        """Move the mouse onto the first element that the selector finds, scrolled into view."""
        mouse = self._middle(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **mouse)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.send(
                    "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **mouse
                )

    def tap(self, selector: str) -> None:
        """Tap the first element that the selector finds, with a finger."""
        self.send("Emulation.setTouchEmulationEnabled", enabled=True)
        self.send(
            "Input.dispatchTouchEvent", type="touchStart", touchPoints=[self._middle(selector)]
        )
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.send("Emulation.setTouchEmulationEnabled", enabled=False)

    def _middle(self, selector: str) -> dict[str, float]:
        """Scroll an element into view; returns where its middle is."""
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getClientRects()[0];"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        return {"x": box[0], "y": box[1]}


@contextmanager
def browser() -> Iterator[Page]:
    """Start a browser with a profile of its own, and end it."""
    path = browser_path()
    assert path is not None
    its_in, to_it = os.pipe()
    from_it, its_out = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            # The browser reads commands from descriptor 3 and answers on 4.
            [
                *("bash", "-c", f'exec "$@" 3<&{its_in} 4>&{its_out}', "browser", path),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
                *("--no-first-run", "--disable-background-networking"),
                f"--user-data-dir={profile}",
            ],
            pass_fds=(its_in, its_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in)
        os.close(its_out)
        try:
            page = Page(process, to_it, from_it)
            yield page
            page._session = None
            page.send("Browser.close")
        finally:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(to_it)
            os.close(from_it)
