"""Sends malformed requests over HTTP: valid but for a few bytes, of the connection, the JSON, the query or the form.

    python -m tests.serving.http.malformed --requests 100000 [--seed 0]

None may be answered with an internal error, and the server's memory must not grow with their number.
"""

import argparse
import gzip
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.artifacts import tiny_artifact
from tests.e2e.processes import quiet_environment, resident_megabytes
from tests.sources.pictures import png

COLLECTION = "fuzz"
_SECONDS = 20.0
_PIECES = (
    b"\x00",
    b"\xff",
    b'"',
    b"{",
    b"[",
    b"}",
    b",",
    b":",
    b"-",
    b"1e999",
    b"null",
    b"\\ud800",
    b"\r\n",
    b"%00",
    b" ",
    b"--x",
    b"&k=",
    b"99999999999",
)
_OF = f"/v1/collections/{COLLECTION}"
_JSON, _FORM = "application/json", "multipart/form-data; boundary=x"
_FORM_BODY = b"".join(
    b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
    for part in ((b"k", b"", b"3"), (b"image", b'; filename="a.png"\r\nContent-Type: image/png', png(1)))
)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


# Verb, path and query, type of the body, body; all of them valid.
REQUESTS = (
    (
        "POST",
        f"{_OF}/search",
        _JSON,
        _json({"queries": [{"key": "a"}, {"vector": [0.5] * 4}], "k": 3, "filter": "label = 'x'"}),
    ),
    (
        "POST",
        f"{_OF}/items",
        _JSON,
        _json({"items": [{"key": "a", "vector": [1] * 16, "payload": {"x": [1, {"y": None}]}, "label": "b"}]}),
    ),
    (
        "POST",
        "/v2/models/tiny/infer",
        _JSON,
        _json({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}]}),
    ),
    ("GET", f"{_OF}/search?key=a&k=3&with_payload=true&filter=label%20=%20%22x%22", "", b""),
    ("GET", f"{_OF}/items?key=a&key=b&with_vector=1&vectors=base64", "", b""),
    ("GET", f"{_OF}/scroll?page_size=2&filter=payload.x%20%3C%203", "", b""),
    ("POST", f"{_OF}/search?k=2", "image/png", png(2)),
    ("POST", f"{_OF}/classify", _FORM, _FORM_BODY + b"--x--\r\n"),
    ("POST", f"{_OF}/items?key=p&label=l&payload=%7B%22a%22:1%7D", "application/octet-stream", png(3)),
    ("PATCH", f"{_OF}/items", _JSON, _json({"updates": [{"key": "a", "label": "c", "payload": {"z": 1}}]})),
    ("DELETE", f"{_OF}/items?filter=label%20=%20%22nobody%22", "", b""),
    ("POST", f"{_OF}/facets", _JSON, _json({"field": "label", "limit": 3, "filter": {"all": []}})),
)


def mutate(draw: random.Random, data: bytes) -> bytes:
    """Change some bytes."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            data = data[:at] + draw.choice(_PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + draw.randint(1, 8) :]
        elif kind == 2:
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        else:
            data = data[:at] + data[at : at + 20] * draw.randint(1, 5) + data[at:]
    return data


def request(draw: random.Random) -> tuple[bytes, bool]:
    """Return the bytes of a request, and whether its head may be wrong, too."""
    verb, path, kind, body = draw.choice(REQUESTS)
    packed = bool(body) and draw.random() < 0.1
    if packed:
        body = gzip.compress(body)
    whole = draw.random() < 0.3
    if not whole and body:
        body = mutate(draw, body)
    elif not whole:
        start, mark, query = path.partition("?")
        path = start + mark + "".join(chr(b) for b in mutate(draw, query.encode()) if 33 <= b < 127 and b != 35)
    head = f"{verb} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    head += f"content-type: {kind}\r\n" if kind else ""
    head += "content-encoding: gzip\r\n" if packed else ""
    data = f"{head}\r\n".encode() + body
    return (mutate(draw, data) if whole else data), whole


def send(port: int, count: int, seed: int) -> Counter[str]:
    """Send so many requests and return how often each status came; raises AssertionError on an internal error."""
    draw = random.Random(seed)  # noqa: S311 (nothing is secret here)
    statuses: Counter[str] = Counter()
    for _ in range(count):
        data, whole = request(draw)
        answer = b""
        with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
            try:
                connection.sendall(data)
                if whole:
                    # It may be cut off, and the server would wait for the rest.
                    connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65_536):
                    answer += chunk
            except ConnectionError:
                pass  # what was sent after the refusal was not read
        status = answer[9:12].decode("ascii", "replace")
        statuses[status] += 1
        assert status != "500", (data, answer)
        assert b"internal error" not in answer, (data, answer)
    return statuses


def main() -> None:
    """Send them to a server process and print what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port_file, log = folder / "port", folder / "log"
        command = [sys.executable, "-c", "from imagekin.cli.main import main; main()", "serve"]
        command += ["--model", f"tiny={tiny_artifact(folder / 'tiny.onnx')}", "--data-dir", str(folder / "data")]
        command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--http-port-file", str(port_file)]
        with log.open("w") as written:
            server = subprocess.Popen(command, stdout=written, stderr=written, env=quiet_environment())
        try:
            while not port_file.exists():
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            port = int(port_file.read_text())
            prepare(port)
            tenth = max(1, options.requests // 10)
            started = time.monotonic()
            statuses: Counter[str] = Counter()
            megabytes = []
            for part in range(10):
                statuses += send(port, tenth, options.seed * 10 + part)
                megabytes.append(round(resident_megabytes(server.pid), 1))
            assert server.poll() is None, log.read_text()
        finally:
            server.terminate()
            server.wait(60)
        assert "Traceback" not in log.read_text(), log.read_text()
    said = {"requests": tenth * 10, "statuses": dict(statuses.most_common()), "megabytes": megabytes}
    print(json.dumps({"malformed": said, "seconds": time.monotonic() - started}))


def prepare(port: int) -> None:
    """Make the collection that the requests name."""
    body = _json({"name": COLLECTION, "thumbnail_size": 32, "model": "tiny"})
    head = f"POST /v1/collections HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
        connection.sendall(f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + body)
        answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200"), answer


if __name__ == "__main__":
    main()
