"""No request holds the event loop, whatever it is made of: others are served beside it.

How long others wait is measured by `python -m tests.serving.waits`; here it is the loop's own work that is counted, in
seconds of its thread, which do not depend on what else the machine does.
"""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from imagekin.serving.settings import Settings
from tests.artifacts import tiny_artifact
from tests.serving import at_limits
from tests.serving.running import code, running

# Ten times what the longest needs, which is to receive a message of 32 MiB.
MOST_SECONDS = 0.25
# Of them each answer is long, and filling takes a second.
ITEMS = 2_000
SLOW = ("Classify", "diverse", "Snapshot")


class Stopwatch:
    """Note the longest of all callbacks on a thread's event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.thread = 0
        run = cast(Any, asyncio.Handle)._run

        def timed(handle: asyncio.Handle) -> None:
            if threading.get_ident() != self.thread:
                run(handle)
                return
            start = time.thread_time()
            try:
                run(handle)
            finally:
                self.seconds = max(self.seconds, time.thread_time() - start)

        monkeypatch.setattr(asyncio.Handle, "_run", timed)


def test_no_request_holds_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch = Stopwatch(monkeypatch)
    model = tiny_artifact(tmp_path / "model.onnx", size=8)
    settings = Settings(address="127.0.0.1:0", models=(("tiny", model),), data_dir=tmp_path / "data")
    codes: dict[str, list[str]] = {}
    with running(settings) as server:
        channel: Any = server.channel  # raw bytes go through it, which its types do not foresee
        at_limits.fill(lambda path, data: channel.unary_unary(path)(data, timeout=60), ITEMS)

        async def thread() -> int:
            return threading.get_ident()

        stopwatch.thread = server.run(thread())
        for method, special, data in at_limits.requests():
            if any(word in f"{method} {special}" for word in SLOW):
                continue
            stopwatch.seconds, ended = 0.0, "OK"
            try:
                channel.unary_unary(method)(data, timeout=60)
            except grpc.RpcError as error:
                ended = code(error).name
            codes.setdefault(ended, []).append(f"{method} {special}")
            assert stopwatch.seconds < MOST_SECONDS, (method, special, stopwatch.seconds)
    assert codes.keys() == {"OK", "INVALID_ARGUMENT"}, codes
    assert len(codes["OK"]) > 20
