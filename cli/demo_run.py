"""Run the demo: from training to queries on scikit-learn's handwritten digits, by the commands that a user types.

It trains an encoder on 1,437 digits, indexes them, starts a real server, and queries it over gRPC with 360 digits that
are new to it. The files stay in the demo's folder, so that its commands can be tried again by hand.
"""

import contextlib
import importlib.util
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import imagekin
from imagekin.cli.shared import console
from imagekin.client.sync_client import Client
from imagekin.counting import counted
from imagekin.errors import FailedPreconditionError, ImagekinError, UnavailableError
from imagekin.version import install_command

COLLECTION = "digits"
# A folder that holds this file is the demo's own and may be replaced.
_PAGE = "127.0.0.1:8080"
_MARK = ".imagekin-demo"
# Checked before the training begins, not a minute later.
_NEEDS = ("faiss", "grpc_health", "onnx", "onnxruntime", "onnxscript", "sklearn", "torch")
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
# Least time for which embedding is measured, after a warm-up.
_TIMED_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Digits:
    """Digits as image files.

    Attributes:
        folder: DIGIT/NUMBER.png files.
        files: the files' bytes, in the order of `labels`.
        labels: what each one shows.
    """

    folder: Path
    files: tuple[bytes, ...]
    labels: tuple[str, ...]


class _Steps:
    """Run the demo's steps, print what each one does, and time it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Print what the step does, and afterwards how long it took."""
        console.say(f"▸ {text}")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        console.say(f"  {self.seconds[name]:.1f} s")


def run(out: Path, *, as_json: bool) -> None:
    """Run the demo in `out` and print its figures.

    Raises:
        FailedPreconditionError: an extra is missing, or `out` holds something that is not the demo's own.
        ImagekinError: a step failed.
    """
    started = time.perf_counter()
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise FailedPreconditionError(f"the demo needs {', '.join(missing)}: {install_command('cpu,train')}")
    prepare(out)
    steps = _Steps()
    model, data = out / "run" / "model.onnx", out / "data"
    with _terminable():
        with steps.step("digits", "write 1,797 handwritten digits as PNG files, a fifth of them held out"):
            train, test = (_write_digits(out / "digits", split) for split in ("train", "test"))
        with steps.step("train", f"imagekin train digits --out {out / 'run'}"):
            trained = _imagekin("train", "digits", "--out", str(out / "run"), "--overwrite", "--json")
        options = ["--model", str(model), "--data-dir", str(data)]
        with steps.step("index", shlex.join(["imagekin", "index", COLLECTION, str(train.folder), *options])):
            _imagekin("index", COLLECTION, str(train.folder), *options, "--json")
        with contextlib.ExitStack() as stack:
            with steps.step("serve", shlex.join(["imagekin", "serve", *options])):
                client = stack.enter_context(served(options, out))
            with steps.step("classify", f"ask {client.address} what the {len(test.files)} held-out digits are"):
                predictions = client.classify(test.files, collection=COLLECTION)
            with steps.step("embed", "embed digits for a few seconds through gRPC"):
                embedded, seconds = _time_embedding(client, train.files)
    correct = sum(found.label == label for found, label in zip(predictions, test.labels, strict=True))
    figures = {
        "knn_accuracy": correct / len(test.labels),
        "linear_accuracy": trained["linear_accuracy"],
        "onnx_max_abs_diff": trained["onnx_max_abs_diff"],
        "embeddings_per_second": console.rate(embedded, seconds),
        "train_count": len(train.labels),
        "test_count": len(test.labels),
        "model": str(model),
        "step_seconds": steps.seconds,
        "seconds": time.perf_counter() - started,
    }
    if as_json:
        console.print_json(figures)
    else:
        _show(figures, out, test.folder)


def prepare(out: Path) -> None:
    """Create the demo's folder, replacing an earlier one."""
    if out.exists() and not out.is_dir():
        raise FailedPreconditionError(f"{out} is a file: choose another folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARK).exists():
            raise FailedPreconditionError(f"{out} holds other files: choose another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()


def _write_digits(folder: Path, split: Any) -> _Digits:
    from PIL import Image

    from imagekin.training.data.images import load_images

    images = load_images("digits", size=8, split=split)
    files = []
    for key, pixels in zip(images.keys, images.pixels, strict=True):
        encoded = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels[:, :, 0])).save(encoded, "PNG")
        path = folder / split / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.getvalue())
        files.append(encoded.getvalue())
    labels = tuple(images.class_names[label] for label in images.labels)
    return _Digits(folder / split, tuple(files), labels)


def _command(arguments: Sequence[str]) -> list[str]:
    # The user's own settings file must not affect the demo.
    return [sys.executable, "-m", "imagekin", "--config", os.devnull, *arguments]


def _environment() -> dict[str, str]:
    """Return the environment without the user's settings, and with this program importable from any folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEKIN_")}
    root = str(Path(imagekin.__file__).resolve().parents[1])
    return kept | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _imagekin(*arguments: str) -> dict[str, Any]:
    """Run a command and return the JSON object that it answers; its messages are shown as they come."""
    done = subprocess.run(_command(arguments), stdout=subprocess.PIPE, text=True, check=False, env=_environment())  # noqa: S603
    if done.returncode:
        raise ImagekinError(f"'imagekin {arguments[0]}' failed with status {done.returncode}; its message is above")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@contextlib.contextmanager
def served(options: Sequence[str], out: Path) -> Iterator[Client]:
    """Run `imagekin serve` on a free port, yield a client of it, and stop it whatever happens."""
    port_file, log_file = out / "port", out / "serve.log"
    listen = ["--address", "127.0.0.1:0", "--port-file", str(port_file)]
    with log_file.open("w") as log:
        server = subprocess.Popen(_command(["serve", *options, *listen]), stderr=log, env=_environment())  # noqa: S603
    try:
        port = _wait_for_port(server, port_file, log_file)
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_ready(_START_SECONDS)
            yield client
    finally:
        _stop(server)
        port_file.unlink(missing_ok=True)


def _wait_for_port(server: "subprocess.Popen[bytes]", port_file: Path, log_file: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if port_file.exists() and (text := port_file.read_text().strip()):
            return int(text)
        time.sleep(0.02)
    last = (log_file.read_text().splitlines() or ["no message"])[-1]
    raise UnavailableError(f"'imagekin serve' did not start: {last}")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """End the demo on SIGTERM as on Ctrl-C, so that the server is stopped in both cases."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt("stopped")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _time_embedding(client: Client, files: Sequence[bytes]) -> tuple[int, float]:
    """Embed for a while; return the number of images embedded, and the seconds that it took."""
    client.embed(files)
    count, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < _TIMED_SECONDS:
        count += len(client.embed(files))
    return count, seconds


def _show(figures: dict[str, Any], out: Path, test: Path) -> None:
    seconds = {name: f"{taken:.1f}" for name, taken in figures["step_seconds"].items()}
    asked = f"kNN accuracy on {figures['test_count']:,} held-out digits, over gRPC"
    console.print_table(
        ["digits", "result", "seconds"],
        [
            [asked, f"{figures['knn_accuracy']:.2%}", seconds["classify"]],
            ["linear probe accuracy", f"{figures['linear_accuracy']:.2%}", ""],
            ["ONNX against torch, max |Δ|", f"{figures['onnx_max_abs_diff']:.1e}", ""],
            ["embeddings/s over gRPC", f"{figures['embeddings_per_second']:,.0f}", seconds["embed"]],
            ["training, export and its check", counted(figures["train_count"], "image"), seconds["train"]],
            ["indexing", counted(figures["train_count"], "image"), seconds["index"]],
            ["starting the server", "", seconds["serve"]],
            ["everything", "", f"{figures['seconds']:.1f}"],
        ],
    )
    query = min(test.rglob("*.png"))
    print(
        "\nNext:\n"
        f"  imagekin serve --model {shlex.quote(figures['model'])} --data-dir {shlex.quote(str(out / 'data'))}"
        f" --http-address {_PAGE} &\n"
        f"  imagekin search --collection {COLLECTION} {shlex.quote(str(query))}\n"
        "  imagekin train PHOTOS --out runs/photos    # a folder of class folders of your own\n"
        f"Once it serves, the page is at http://{_PAGE}/: drop a picture, see what is alike."
    )
