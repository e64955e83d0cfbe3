"""Whatever bytes a client sends, it gets an embedding or INVALID_ARGUMENT, and the server serves the next one."""

import tarfile
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from imagekin import Client
from imagekin.errors import ImagekinError, InvalidArgumentError
from tests.artifacts import tiny_artifact
from tests.data import shared_data
from tests.e2e.processes import Server, running_server


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    """Every file of the archive by its name."""
    files: dict[str, bytes] = {}
    with tarfile.open(shared_data("hostile-images.tar")) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()
    assert len(files) == 651
    return files


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small model that can tell pictures apart."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(tiny_artifact(folder / "model.onnx", size=32, dim=64), folder / "data") as running:
        yield running


def outcomes(client: Client, images: list[bytes]) -> list[NDArray[np.float32] | ImagekinError]:
    """Embed images and return each one's embedding or error."""
    return list(client.embed(images, errors="return"))


def test_every_hostile_file_is_an_embedding_or_an_invalid_argument(server: Server, hostile: dict[str, bytes]) -> None:
    with Client(server.address) as client:
        answers = dict(zip(hostile, outcomes(client, list(hostile.values())), strict=True))
    for name, answer in answers.items():
        if isinstance(answer, ImagekinError):
            assert isinstance(answer, InvalidArgumentError), f"{name}: {answer.code} {answer}"
            assert "Traceback" not in str(answer), name
            assert "\n" not in str(answer), name
        else:
            assert answer.dtype == np.float32, name
            assert np.linalg.norm(answer) == pytest.approx(1, abs=1e-4), name
    served = [name for name, answer in answers.items() if not isinstance(answer, ImagekinError)]
    assert "pillow/hopper.jpg" in served
    # Most are odd but valid; a decoder that refuses whatever is unusual would pass all of the above.
    assert len(served) > 400


def test_the_server_is_alive_and_level_after_two_more_rounds(server: Server, hostile: dict[str, bytes]) -> None:
    with Client(server.address) as client:
        outcomes(client, list(hostile.values()))
        before = server.resident_megabytes()
        for _ in range(2):
            outcomes(client, list(hostile.values()))
        assert server.resident_megabytes() < before * 1.2 + 20
        assert client.embed([hostile["pillow/hopper.png"]]).shape == (1, 64)
    assert server.process.poll() is None


def test_a_16_bit_image_is_not_white(server: Server, hostile: dict[str, bytes]) -> None:
    white = np.full((128, 128, 3), 255, np.uint8)
    with Client(server.address) as client:
        deep, blank = client.embed([hostile["pillow/16bit.cropped.tif"], white])
    assert float(deep @ blank) < 0.99


@pytest.mark.parametrize("number", range(2, 9))
def test_an_exif_rotated_image_embeds_like_its_upright_twin(
    server: Server, hostile: dict[str, bytes], number: int
) -> None:
    with Client(server.address) as client:
        turned, upright = client.embed(
            [hostile[f"pillow/hopper_orientation_{number}.jpg"], hostile["pillow/hopper.jpg"]]
        )
    assert float(turned @ upright) >= 0.99
