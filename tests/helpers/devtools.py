"""Drives a headless Chromium through its debugging pipe: real mouse and keys, no package."""

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds for an answer


class Browser:
    """One page in a Chromium of its own.

    Args:
        command: The browser and its flags.
    """

    def __init__(self, command: list[str]) -> None:
        from_us, self.to_browser = os.pipe()
        self.from_browser, to_us = os.pipe()
        # The browser reads commands from its descriptor 3 and answers on 4.
        pipes = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", pipes, "browser", *command, "--remote-debugging-pipe"],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []  # of the domains that were enabled
        self.targets: dict[str, str] = {}
        self.add_tab()

    def add_tab(self, **where: str) -> str:
        """Open one more tab, to which all goes from now on; its session may be set again."""
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank", **where)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.targets[self.session] = target
        return self.session

    def close_tab(self) -> None:
        """Close the tab to which all goes; set the session of another one afterwards."""
        self.call("Page.close")
        del self.targets[self.session]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], end - time.monotonic())
            part = os.read(self.from_browser, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Open a file or an address in a window of that size."""
        url = page if isinstance(page, str) else page.as_uri()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState + location.href === 'complete{url}'")

    def wait_for(self, expression: str, patience: float = 30.0) -> Any:
        """Wait until a JavaScript expression is true, and tell its value."""
        end = time.monotonic() + patience
        while (value := self.ask(expression)) in (None, False, ""):  # an element is {}
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.01)
        return value

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; the page itself may run nothing."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, expression: str, click: bool = False) -> None:
        """Move the mouse onto the first box of an element, and press it there if asked."""
        x, y = self.ask(
            f"(() => {{ const e = {expression}; e.scrollIntoView({{block: 'center'}});"
            "const b = e.getClientRects()[0]; return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.mouse(x, y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.mouse(x, y, kind)

    def mouse(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        """One event of the mouse."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def press(self, key: str, code: int = 0, modifiers: int = 0) -> None:
        """Press and release a key; modifiers: 1 Alt, 2 Control, 4 Meta, 8 Shift."""
        where = f"Digit{key}" if key.isdigit() else key
        event = {"key": key, "code": where, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **event)

    def write(self, text: str) -> None:
        """Put text where the cursor is."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """What the window shows, as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.session = ""
        self.call("Browser.close")
        self.process.wait(PATIENCE)
        os.close(self.to_browser)
        os.close(self.from_browser)
