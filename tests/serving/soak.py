"""Keeps a server busy for as long as it is told, and checks that its memory and file descriptors stay level.

    python -m tests.serving.soak [--seconds 3600] [--items 2000]

Writes with labels and texts that never repeat, deletes as much, searches, classifies, embeds, takes snapshots, reloads,
drops collections and makes them anew. A sample is taken every second; the first third warms up. Prints one JSON line:
the slopes of memory (MiB) and descriptors an hour with their standard errors, of means of 30 samples, the calls, and
the mean memory of each sixth of the time, which shows whether it still rises.
Its exit status is 1 when a slope is more than three standard errors above zero and adds up to more than 16 MiB or 8
descriptors over the time measured, or when a call failed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from imagekin import Client, Item
from imagekin.v1 import admin_pb2, admin_pb2_grpc
from tests.artifacts import tiny_artifact
from tests.e2e.processes import Server, running_server
from tests.serving.running import png

ROUND = 100
_EACH_MEAN = 30
_PARTS = 6
_MEGABYTES, _DESCRIPTORS = 16.0, 8.0


def work(client: Client, number: int, items: int) -> int:
    """Do one round of calls, and return how many."""
    first = number * ROUND
    rng = np.random.default_rng(number)
    batch = [
        Item(f"k{key}", vector=rng.normal(size=16), label=f"label {key}", payload={"text": f"never again {key}"})
        for key in range(first, first + ROUND)
    ]
    client.upsert("shop", batch)
    client.delete("shop", keys=[f"k{key}" for key in range(first - items, first - items + ROUND)])
    client.search(vectors=[batch[0].vector], collection="shop", k=10)
    client.count("shop", filter=f'label = "label {first}"')
    client.embed([png(number % 50)])
    if number % 20 == 0:
        client.snapshot("shop")
        client.create_collection(f"passing-{number}", space="passing", dim=16)
        client.upsert(f"passing-{number}", batch)
        client.drop_collection(f"passing-{number}")
    return 5


def slope(seconds: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the slope of a line through values, an hour, and its standard error."""
    count = len(values) // _EACH_MEAN
    x, y = (each[: count * _EACH_MEAN].reshape(count, _EACH_MEAN).mean(axis=1) for each in (seconds, values))
    if count < 4:
        return 0.0, float("inf")
    x = (x - x.mean()) / 3600
    found = float(x @ y / (x @ x))
    rest = y - y.mean() - found * x
    return found, float(np.sqrt(rest @ rest / (count - 2) / (x @ x)))


def soak(server: Server, seconds: float, items: int) -> dict[str, object]:
    """Keep a server busy, and return what was measured."""
    samples: list[tuple[float, float, float]] = []
    calls = number = 0
    with Client(server.address, timeout=60) as client:
        client.create_collection("shop", space="random", dim=16)
        begin = last = time.monotonic()
        while time.monotonic() < begin + seconds:
            calls += work(client, number, items)
            number += 1
            if number % 100 == 0:
                _reload(server)
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
                samples.append((last - begin, server.resident_megabytes(), float(descriptors)))
    found = np.array(samples[len(samples) // 3 :])
    memory, descriptors_ = slope(found[:, 0], found[:, 1]), slope(found[:, 0], found[:, 2])
    hours = float(found[-1, 0] - found[0, 0]) / 3600
    rising = [
        name
        for name, (value, error), most in (("memory", memory, _MEGABYTES), ("descriptors", descriptors_, _DESCRIPTORS))
        if value > 3 * error and value * hours > most
    ]
    return {
        "calls": calls,
        "measured_seconds": round(3600 * hours),
        "megabytes": [round(float(part[:, 1].mean()), 1) for part in np.array_split(found, _PARTS)],
        "megabytes_an_hour": [round(one, 1) for one in memory],
        "descriptors": [int(found[0, 2]), int(found[-1, 2])],
        "descriptors_an_hour": [round(one, 1) for one in descriptors_],
        "rising": rising,
    }


def _reload(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        admin_pb2_grpc.AdminStub(channel).Reload(admin_pb2.ReloadRequest(), timeout=60)


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--items", type=int, default=2000, help="items that the collection keeps")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = tiny_artifact(Path(name) / "model.onnx", size=8)
        with running_server(model, Path(name) / "data") as server:
            found = soak(server, given.seconds, given.items)
    print(json.dumps(found))
    return 1 if found["rising"] else 0


if __name__ == "__main__":
    sys.exit(main())
