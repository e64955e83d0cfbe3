"""`imagekin search` draws the neighbours' pictures in terminals that can show them."""

import io
import os
import pty
import re
import subprocess
import threading
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin.cli.main import run
from imagekin.cli.shared.terminal_pictures import HEIGHT, Protocol, drawn, protocol, strip
from tests.artifacts import tiny_artifact
from tests.e2e.processes import IMAGEKIN, quiet_environment


def jpeg(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "socket,1,0"}, None),
    ],
)
def test_a_terminal_is_told_by_its_environment(environment: dict[str, str], expected: Protocol | None) -> None:
    assert protocol(environment) == expected


def test_a_strip_holds_what_fits_and_leaves_out_what_is_no_picture() -> None:
    whole = strip([jpeg(160, 80), b"no picture", jpeg(80, 160), jpeg(160, 160)], 2 * HEIGHT + HEIGHT // 2 + 8)
    assert whole is not None
    assert whole.size == (2 * HEIGHT + 8 + HEIGHT // 2, HEIGHT)
    assert strip([b"", b"\xff\xd8", jpeg(2000, 2000)], 1000) is None
    first = strip([jpeg(300, 100)], 10)
    assert first is not None
    assert first.width == 3 * HEIGHT


def pixels_of_sixels(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Draw sixels, as a terminal does."""
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found is not None
    width, height, body = int(found[1]), int(found[2]), found[3]
    image = np.zeros((height + 5, width, 3), np.uint8)
    palette: dict[int, tuple[int, ...]] = {}
    top = column = colour = 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|[?-~]|\$|-", body):
        if token == "$":
            column = 0
        elif token == "-":
            top, column = top + 6, 0
        elif token.startswith("#"):
            colour, *parts = map(int, token[1:].split(";"))
            if parts:
                palette[colour] = tuple(round(part * 2.55) for part in parts[1:])
        else:
            count, value = (int(token[1:-1]), token[-1]) if token[0] == "!" else (1, token)
            for place in range(6):
                if (ord(value) - 63) >> place & 1:
                    image[top + place, column : column + count] = palette[colour]
            column += count
    return image[:height]


def test_each_protocol_carries_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 11, 3), np.uint8)
    picture = Image.fromarray(noise).resize((77, 20), Image.Resampling.NEAREST)
    exact = np.asarray(picture)
    kitty = drawn(picture, "kitty")
    data = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", kitty))
    assert (np.asarray(Image.open(io.BytesIO(b64decode(data)))) == exact).all()
    assert all(len(part) <= 4096 for part in re.findall(r";([^\x1b;]*)\x1b\\", kitty))
    iterm = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):(.*)\x07", drawn(picture, "iterm2"))
    assert iterm is not None
    assert len(b64decode(iterm[2])) == int(iterm[1])
    assert (np.asarray(Image.open(io.BytesIO(b64decode(iterm[2])))) == exact).all()
    # Fifty-five colours fit into the palette; a part of a colour is a percentage.
    assert np.abs(pixels_of_sixels(drawn(picture, "sixel")).astype(int) - exact).max() <= 3


def in_a_terminal(command: list[str], **settings: str) -> str:
    """Run a command in a terminal, and return what it wrote."""
    ours, theirs = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 65_536):
                written.append(part)
        except OSError:
            return  # the other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    try:
        bare = {name: value for name, value in quiet_environment().items() if name not in ("TMUX", "KITTY_WINDOW_ID")}
        done = subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, timeout=120, env=bare | settings)
        assert done.returncode == 0
    finally:
        os.close(theirs)
        reader.join(30)
        os.close(ours)
    return b"".join(written).decode()


def test_a_search_shows_its_pictures_in_a_terminal_that_can(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(jpeg(100, 50, (number * 100, 9, 9)))
    model, data = str(tiny_artifact(tmp_path / "tiny.onnx")), str(tmp_path / "data")
    assert run(["index", "shop", str(photos), "--model", model, "--data-dir", data]) == 0
    place = ["--collection", "shop", "--model", model, "--data-dir", data]
    command = [*IMAGEKIN, "search", str(photos / "0.jpg"), *place]
    shown = in_a_terminal(command, TERM="xterm-kitty")
    assert "0.jpg" in shown
    (picture,) = re.findall(r"\x1b_Ga=T[^\x1b]*\x1b\\(?:\x1b_G[^\x1b]*\x1b\\)*", shown)
    assert picture
    assert "\x1b_G" not in in_a_terminal([*command, "--no-pictures"], TERM="xterm-kitty")
    assert "\x1b_G" not in in_a_terminal(command, TERM="xterm-256color")
