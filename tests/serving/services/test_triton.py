"""A stock tritonclient embeds unmodified.

In an environment of its own: it needs a protobuf older than ours, and brings the same message names.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagekin.v1 import embedder_pb2
from imagekin.v1.common_pb2 import Image
from tests.serving.running import Running, png

PROGRAM = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

address, files = sys.argv[1], sys.argv[2:]
client = triton.InferenceServerClient(address)
metadata = client.get_model_metadata("tiny", as_json=True)
images = np.array([open(file, "rb").read() for file in files], dtype=np.object_)
given = triton.InferInput("image", [len(files)], "BYTES")
given.set_data_from_numpy(images)
by_file = client.infer("tiny", [given], outputs=[triton.InferRequestedOutput("embedding")]).as_numpy("embedding")
pixels = triton.InferInput("pixels", [2, 8, 8, 3], "UINT8")
pixels.set_data_from_numpy(np.arange(384, dtype=np.uint8).reshape(2, 8, 8, 3))
by_pixels = client.infer("tiny", [pixels]).as_numpy("embedding")
try:
    client.infer("none", [given])
    refused = ""
except triton.InferenceServerException as error:
    refused = error.status()
print(json.dumps({
    "live": client.is_server_live(), "ready": client.is_server_ready(), "model": client.is_model_ready("tiny"),
    "server": client.get_server_metadata().name, "inputs": [each["name"] for each in metadata["inputs"]],
    "embeddings": by_file.tolist(), "norms": np.linalg.norm(by_pixels, axis=1).tolist(), "refused": refused,
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has tritonclient: the one of IMAGEKIN_TRITON_PYTHON, or a new environment's."""
    given = os.environ.get("IMAGEKIN_TRITON_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("triton")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    own = str(folder / "bin" / "python")
    install = [own, "-m", "pip", "install", "--quiet", "tritonclient[grpc]"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip("tritonclient cannot be installed here; IMAGEKIN_TRITON_PYTHON may name a Python that has it")
    return own


def test_a_stock_triton_client_embeds(server: Running, python: str, tmp_path: Path) -> None:
    images = [png(1), png(2)]
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(image)
    arguments = [python, "-c", PROGRAM, f"127.0.0.1:{server.server.port}", *map(str, files)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["live"], answer["ready"], answer["model"]) == (True, True, True)
    assert (answer["server"], answer["inputs"]) == ("imagekin", ["image", "pixels"])
    assert answer["refused"] == "StatusCode.NOT_FOUND"
    assert answer["norms"] == pytest.approx([1, 1], abs=1e-5)
    request = embedder_pb2.EmbedRequest(images=[Image(data=image) for image in images])
    ours = np.stack([np.frombuffer(result.vector, "<f4") for result in server.embedder.Embed(request).results])
    np.testing.assert_allclose(np.asarray(answer["embeddings"]), ours, atol=1e-6)
