"""Measure what ordinary callers notice of one who sends huge pictures: their waits alone and beside it, in turn.

    python -m bench.serving.fairness [--model MODEL.onnx] [--pictures 48] [--megapixels 62] [--rounds 3]

A server with a token for each of ten ordinary callers and one for the greedy one. Each ordinary caller has a connection
of its own, over which it sends one small photo after the other, with pauses. The greedy one sends huge pictures again
and again, 3 gigapixels in a call as the options stand. A PNG is decoded as a whole: one of 62 megapixels holds a thread
for more than a second. The target is that the median and the 95 % wait of each ordinary caller stay within 1.5 times
those alone plus one batch, which here is one such picture by itself.
"""

import argparse
import asyncio
import io
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from PIL import Image as Picture

from bench.harness import Target, report
from bench.serve import make_model
from bench.serving.process import imagekin
from imagekin.v1 import common_pb2, embedder_pb2

CALLERS = 10
EMBED = "/imagekin.v1.Embedder/Embed"
_FACTOR = 1.5
_PAUSE_SECONDS = 0.1
_SETTLE_SECONDS = 3.0
_PHOTO_SIDE = 640


def photo(seed: int) -> bytes:
    """Return a JPEG photo of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    file = io.BytesIO()
    Picture.fromarray(coarse).resize((_PHOTO_SIDE, _PHOTO_SIDE), Picture.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def huge(megapixels: float) -> bytes:
    """Return a PNG of so many megapixels, small as a file."""
    side = round((megapixels * 1e6) ** 0.5)
    file = io.BytesIO()
    Picture.linear_gradient("L").resize((side, side)).convert("RGB").save(file, "PNG", compress_level=6)
    return file.getvalue()


class Crowd:
    """Ordinary callers and a greedy one.

    Args:
        address: of the server.
        large: the greedy caller's picture.
        pictures: how many of it are in one call.
    """

    def __init__(self, address: str, large: bytes, pictures: int) -> None:
        # Raw bytes go through them, which their types do not foresee.
        self._channels: list[Any] = [
            grpc.aio.insecure_channel(
                address, [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
            )
            for _ in range(CALLERS + 1)
        ]
        self._photos = [_request([photo(seed)]) for seed in range(CALLERS)]
        self._one, self._many = _request([large]), _request([large] * pictures)

    async def close(self) -> None:
        """Hang up."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def alone(self, seconds: float) -> list[list[float]]:
        """Return the seconds that each ordinary caller's calls take."""
        return await asyncio.gather(*(self._ordinary(number, seconds) for number in range(CALLERS)))

    async def beside(self, seconds: float) -> tuple[list[list[float]], int]:
        """Return the same beside the greedy caller, and how many of its calls were answered."""
        answered = 0

        async def greedy() -> None:
            nonlocal answered
            while True:
                await self._embed(CALLERS, self._many)
                answered += 1

        task = asyncio.ensure_future(greedy())
        await asyncio.sleep(1)
        found = await self.alone(seconds)
        assert not task.done()
        task.cancel()
        await asyncio.sleep(_SETTLE_SECONDS)
        return found, answered

    async def large_seconds(self) -> float:
        """Return how long the greedy caller waits for one picture, alone."""
        return min([await self._embed(CALLERS, self._one) for _ in range(3)])

    async def _ordinary(self, number: int, seconds: float) -> list[float]:
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            await asyncio.sleep(2 * _PAUSE_SECONDS * random.random())  # noqa: S311 (not for secrets)
            found.append(await self._embed(number, self._photos[number]))
        return found

    async def _embed(self, number: int, request: bytes) -> float:
        start = time.perf_counter()
        metadata = (("authorization", f"Bearer {_token(number)}"),)
        answer = await self._channels[number].unary_unary(EMBED)(request, metadata=metadata, timeout=600)
        seconds = time.perf_counter() - start
        results = embedder_pb2.EmbedResponse.FromString(answer).results
        assert all(result.WhichOneof("outcome") != "error" for result in results)
        return seconds


def _request(images: Sequence[bytes]) -> bytes:
    return embedder_pb2.EmbedRequest(images=[common_pb2.Image(data=data) for data in images]).SerializeToString()


def _token(number: int) -> str:
    return f"caller-{number:04d}-0123456789abcdef"


def _tokens() -> str:
    return "".join(
        f'[[token]]\nname = "caller {number}"\nscope = "read"\ntoken = "{_token(number)}"\n'
        for number in range(CALLERS + 1)
    )


def _late(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(0.95 * (len(seconds) - 1))]


async def measure(address: str, large: bytes, pictures: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure all callers alone and beside the greedy one, in turn."""
    crowd = Crowd(address, large, pictures)
    alone: list[list[float]] = [[] for _ in range(CALLERS)]
    beside: list[list[float]] = [[] for _ in range(CALLERS)]
    answered = 0
    try:
        await crowd.alone(1)
        batch = await crowd.large_seconds()
        for _ in range(rounds):
            for found, more in zip(alone, await crowd.alone(seconds), strict=True):
                found += more
            waits, calls = await crowd.beside(seconds)
            answered += calls
            for found, more in zip(beside, waits, strict=True):
                found += more
    finally:
        await crowd.close()
    return {"batch": batch, "answered": answered, "alone": alone, "beside": beside}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a ResNet-18 of random weights is made without")
    parser.add_argument("--pictures", type=int, default=48, help="of one call of the greedy caller")
    parser.add_argument("--megapixels", type=float, default=62, help="of one of its pictures")
    parser.add_argument("--seconds", type=float, default=10, help="of each part of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model.resolve() if options.model else make_model(folder / "resnet18.onnx")
        tokens = folder / "tokens.toml"
        tokens.write_text(_tokens())
        tokens.chmod(0o600)
        with imagekin(folder, "fairness", ("--model", str(model), "--tokens-file", str(tokens))) as server:
            found = asyncio.run(
                measure(server.address, huge(options.megapixels), options.pictures, options.seconds, options.rounds)
            )
    rows, over = [], []
    for number, (alone, beside) in enumerate(zip(found["alone"], found["beside"], strict=True)):
        middle = statistics.median(alone), statistics.median(beside)
        late = _late(alone), _late(beside)
        over += [(pair[1] - _FACTOR * pair[0]) / found["batch"] for pair in (middle, late)]
        rows.append(
            [
                str(number),
                f"{len(alone)} / {len(beside)}",
                *(f"{1000 * value:.1f}" for value in (*middle, *late)),
                f"{middle[1] / middle[0]:.2f}×",
            ]
        )
    ratios = [
        statistics.median(beside) / statistics.median(alone)
        for alone, beside in zip(found["alone"], found["beside"], strict=True)
    ]
    report(
        f"ten ordinary callers beside one with {options.pictures} pictures of {options.megapixels:g} Mpx in a call, "
        f"of which one takes {1000 * found['batch']:.0f} ms",
        ["caller", "calls alone / beside", "median ms alone", "beside", "p95 alone", "beside", "medians"],
        rows,
        [Target("what waits take beyond 1.5× of alone, in pictures, at most", max(over), 1.0, at_least=False)],
        {"batch_seconds": found["batch"], "greedy_calls": found["answered"], "ratios": ratios, "over": over},
        ("onnxruntime", "grpcio"),
    )


if __name__ == "__main__":
    main()
