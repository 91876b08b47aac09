"""Chromium without a window, driven through a pipe: enough to read pages as a person would.

The Chrome DevTools Protocol as ``--remote-debugging-pipe`` has it: JSON, each message ended
by a NUL, on file descriptors 3 (to the browser) and 4 (from it).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1400",
    "--remote-debugging-pipe",
)
# Frames included, which `innerText` leaves out.
_TEXT: Final = """
(function text(page) {
  const frames = [...page.querySelectorAll("iframe")].map((frame) => frame.contentDocument);
  return [page, ...frames.filter(Boolean)].map((d) => d.body?.innerText ?? "").join("\\n");
})(document)
"""


class Page:
    """One tab of a browser that `browser` started."""

    def __init__(self, to_browser: int, from_browser: int, give_up: float) -> None:
        self._to = to_browser
        self._from = from_browser
        self._give_up = give_up
        self._number = 0
        self._received = b""
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """What a person reads, frames included."""
        answer = self._call("Runtime.evaluate", expression=_TEXT, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return str(answer["result"].get("value"))

    def wait_for(self, *texts: str) -> str:
        """Wait until all of these can be read; what else can be, too."""
        while True:
            seen = self.text()
            missing = [text for text in texts if text not in seen]
            if not missing:
                return seen
            assert time.monotonic() < self._give_up, f"no {missing} on the page:\n{seen}"
            time.sleep(0.1)

    def _call(self, method: str, **params: object) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            left = self._give_up - time.monotonic()
            ready, _, _ = select.select([self._from], [], [], max(left, 0))
            assert ready, "the browser does not answer"
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "the browser has ended"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(*, within: float = 60.0) -> Generator[Page, None, None]:
    """A browser with a profile of its own; everything done with it ends within these seconds."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        home = f"--user-data-dir={profile}"
        with subprocess.Popen(
            ["sh", "-c", 'exec chromium "$@" 3<&0 4>&1 0</dev/null 1>&2', "sh", *_FLAGS, home],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "HOME": profile},
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                ends = process.stdin.fileno(), process.stdout.fileno()
                yield Page(*ends, time.monotonic() + within)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
