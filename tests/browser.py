"""A headless Chromium, driven by chromedriver over plain HTTP (the W3C WebDriver protocol)."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server", "--force-device-scale-factor=1",
)  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def start(self, chromium: str, size: tuple[int, int]) -> None:
        """Opens the window; width and height in pixels."""
        arguments = [*ARGUMENTS, f"--window-size={size[0]},{size[1]}"]
        options = {"goog:chromeOptions": {"binary": chromium, "args": arguments}}
        answer = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.address += f"/session/{answer['sessionId']}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command of the protocol, and its value."""
        data = None if method in ("GET", "DELETE") else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method=method
        )  # fmt: skip
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def go(self, url: str) -> None:
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str, *values: Any) -> Any:
        """What a function's body returns, which may be a promise; its arguments are ``arguments``."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(values)})

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Asks again until the answer is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self.run(script)
            if answer:
                return answer
            time.sleep(0.05)
        raise TimeoutError(f"{script} was never true; the page: {self.run('return document.body.innerText')}")

    def screenshot(self) -> bytes:
        return base64.b64decode(self.ask("GET", "/screenshot"))


@contextmanager
def open_browser(driver: str, chromium: str, size: tuple[int, int] = (1180, 760)) -> Iterator[Browser]:
    """A window, closed at the end."""
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:  # "ChromeDriver was started successfully on port 39763."
                if "successfully on port" in line:
                    break
            else:
                raise RuntimeError("chromedriver does not start")
            browser = Browser(f"http://127.0.0.1:{line.rsplit(maxsplit=1)[-1].rstrip('.')}")
            browser.start(chromium, size)
            try:
                yield browser
            finally:
                browser.ask("DELETE", "")
        finally:
            process.terminate()
