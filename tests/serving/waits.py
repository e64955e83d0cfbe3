"""Measures how long others wait beside the largest requests that each method takes.

    python -m tests.serving.waits [--items 12000] [--seconds 3] [--only TEXT]

Starts a server and fills it, then sends each of `tests.serving.at_limits` over and over for some seconds, one at a
time, while a process of its own probes the server's health. Prints one JSON line for each, the longest waits last, and
one line for all: how often the request was sent, how it ended, and the probes' median, 99.9 % and longest waits in
milliseconds. The first line is the wait beside nothing. Its exit status is 1 if a call ended in a bug.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from tests.artifacts import tiny_artifact
from tests.e2e.processes import running_server
from tests.serving import at_limits
from tests.serving.abuse import BUGS
from tests.serving.prober import Prober, Waits, probing
from tests.serving.running import code

CALL_SECONDS = 120.0


def beside(channel: grpc.Channel, prober: Prober, method: str, data: bytes, seconds: float) -> tuple[int, str, Waits]:
    """Send a request over and over, and return how often, how it ended, and how long probes waited meanwhile."""
    send: Any = channel.unary_unary(method)
    sent, ended = 0, "OK"
    prober.waits()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sent += 1
        try:
            send(data, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            ended = code(error).name
    return sent, ended, prober.waits()


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=at_limits.ITEMS, help="items of the collection")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each request")
    parser.add_argument("--only", default="", help="requests whose name holds this text")
    given = parser.parse_args()
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        model = tiny_artifact(Path(name) / "model.onnx", size=8)
        with (
            running_server(model, Path(name) / "data") as server,
            grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)]) as channel,
            probing(server.address) as prober,
        ):
            at_limits.fill(_sender(channel), given.items)
            prober.waits()
            time.sleep(given.seconds)
            print(json.dumps({"request": "nothing"} | _milliseconds(prober.waits())), flush=True)
            for method, special, data in at_limits.requests():
                label = f"{method.rpartition('/')[2]} {special}"
                if given.only not in label:
                    continue
                sent, ended, waits = beside(channel, prober, method, data, given.seconds)
                found.append({"request": label, "sent": sent, "ended": ended} | _milliseconds(waits))
    for line in sorted(found, key=lambda line: float(str(line["p999"]))):
        print(json.dumps(line))
    worst = max(float(str(line["p999"])) for line in found)
    print(json.dumps({"requests": len(found), "worst_p999": worst}))
    return int(any(line["ended"] in BUGS for line in found))


def _sender(channel: Any) -> at_limits.Send:
    return lambda path, data: channel.unary_unary(path)(data, timeout=CALL_SECONDS)


def _milliseconds(waits: Waits) -> dict[str, object]:
    return {
        "probes": waits.probes,
        "p50": round(1000 * waits.median, 2),
        "p999": round(1000 * waits.p999, 1),
        "longest": round(1000 * waits.worst, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
