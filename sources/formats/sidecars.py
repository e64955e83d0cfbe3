"""Read the members beside an image of a WebDataset shard: class (.cls), payload (.json), text (.txt)."""

import json
from collections.abc import Iterable

from imagekin.errors import InvalidArgumentError
from imagekin.sources.records import Record, label_text, printable, record_of
from imagekin.sources.splits import Split
from imagekin.types import JSON

SIDECAR_SUFFIXES = (".cls", ".json", ".txt")


class Sidecars:
    """The sidecars of images with the same name up to the first dot."""

    def __init__(self) -> None:
        self._found: dict[str, bytes | str] = {}

    def __len__(self) -> int:
        return len(self._found)

    @property
    def names(self) -> Iterable[str]:
        """Paths of the sidecars."""
        return self._found.keys()

    def add(self, key: str, data: bytes | str) -> None:
        """Add a sidecar: its bytes, or a message why there are none. Of equal names, the last one is used."""
        self._found[key] = data

    def record(self, key: str, path: str, data: bytes | str, label: str | None, split: Split | None) -> Record:
        """Make the record of an image; with invalid sidecars, it has an error.

        Args:
            key: the image's key.
            path: the image's path in the archive.
            data: the image's bytes, or a message why there are none.
            label: the label by its folder, used if no sidecar has one.
            split: the split by its folder.
        """
        if not self._found or isinstance(data, str):
            return record_of(key, data, label, split=split)
        payload: dict[str, JSON] = {}
        for suffix, name, content in self._of(path):
            try:
                if suffix == ".json":
                    parsed = json.loads(_text(content))
                    if not isinstance(parsed, dict):
                        raise ValueError("it is no JSON object")
                    if "label" in parsed:
                        label = label_text(parsed.pop("label"))
                    payload |= parsed
                elif suffix == ".txt":
                    payload["text"] = _text(content).strip()
                else:
                    label = _text(content).strip() or None
            except (ValueError, RecursionError, InvalidArgumentError) as error:
                return record_of(key, f"its {printable(name)[-100:]} cannot be used: {str(error)[:200]}")
        return record_of(key, data, label, payload, split=split)

    def _of(self, path: str) -> list[tuple[str, str, bytes | str]]:
        """Return suffix, name and content of an image's sidecars, the class last."""
        stem = path.rpartition(".")[0]
        folder, slash, name = path.rpartition("/")
        stems = (stem, f"{folder}{slash}{name.partition('.')[0]}")
        found = []
        for name, content in self._found.items():
            own, _, suffix = name.rpartition(".")
            if own in stems:
                found.append((f".{suffix.lower()}", name, content))
        order = {".txt": 0, ".json": 1, ".cls": 2}
        return sorted(found, key=lambda one: order[one[0]])


def _text(content: bytes | str) -> str:
    if isinstance(content, str):
        raise ValueError(content)
    return content.decode()
