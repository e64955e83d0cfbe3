"""The sync client is generated: the files that are checked in are those of the async one."""

from pathlib import Path

import pytest

from imagekin.client import generate_sync


def test_the_checked_in_sync_client_is_what_the_async_one_generates(tmp_path: Path) -> None:
    generate_sync.generate(tmp_path)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    checked_in = {path.name: path.read_text() for path in generate_sync.FOLDER.glob("sync_*.py")}
    assert generated.keys() == checked_in.keys() != set(), "run `make client`"
    for name, code in generated.items():
        assert code == checked_in[name], f"{name}: run `make client`"


@pytest.mark.parametrize(
    ("source", "twin"),
    [
        ("async def get(self) -> AsyncGenerator[int, None]:", "def get(self) -> Generator[int, None]:"),
        ("async with aclosing(await self.open()) as rows:", "with closing(self.open()) as rows:"),
        ("async def __aexit__(self): return await self.close()", "def __exit__(self): return self.close()"),
        (
            "from imagekin.client.async_transport import AsyncTransport",
            "from imagekin.client.sync_transport import Transport",
        ),
    ],
)
def test_what_awaits_becomes_what_blocks(source: str, twin: str) -> None:
    assert generate_sync.sync_source(source) == twin


@pytest.mark.parametrize("source", ["await asyncio.sleep(1)", "async(1)", '"""Awaits in the event loop."""'])
def test_what_has_no_sync_counterpart_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="no sync counterpart"):
        generate_sync.sync_source(source)
