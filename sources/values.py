"""Validate the keys, labels and payloads of images.

Every function returns the value in the form in which it is stored, or raises InvalidArgumentError in one line.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from imagekin.errors import InvalidArgumentError
from imagekin.types import JSON, Payload

MAX_KEY_BYTES = 1024
MAX_LABEL_BYTES = 1024
MAX_PAYLOAD_BYTES = 64 * 1024
_MAX_PAYLOAD_DEPTH = 64

_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def key(value: str) -> str:
    """Return `value` if it is a valid key: 1 to 1,024 bytes of UTF-8 without control characters."""
    size = text_bytes(value, "key")
    if not 1 <= size <= MAX_KEY_BYTES:
        raise InvalidArgumentError(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one has {size}", field="key")
    return value


def keys(values: Sequence[str]) -> list[str]:
    """Check keys, and return them without repetitions, in their order."""
    return list(dict.fromkeys(key(value) for value in values))


def label(value: str | None) -> str | None:
    """Return a label of at most 1,024 bytes of UTF-8 without control characters; None for an empty one."""
    if not value:
        return None
    size = text_bytes(value, "label")
    if size > MAX_LABEL_BYTES:
        raise InvalidArgumentError(f"a label has at most {MAX_LABEL_BYTES} bytes, this one has {size}", field="label")
    return value


class CheckedPayload(Mapping[str, JSON]):
    """A payload that can be stored, kept as its JSON text and parsed when it is looked into.

    A batch of payloads as objects would be millions of them, all of which Python's garbage collector walks at once.

    Args:
        text: the JSON text, as `payload_text` returns it.
    """

    __slots__ = ("_found", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._found: dict[str, JSON] | None = None

    def __getitem__(self, name: str) -> JSON:
        return self._parsed()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed())

    def __len__(self) -> int:
        return len(self._parsed())

    def __bool__(self) -> bool:
        """Return True, because an empty payload is none."""
        return True

    def __repr__(self) -> str:
        return repr(self._parsed())

    def _parsed(self) -> dict[str, JSON]:
        if self._found is None:
            self._found = json.loads(self.text)
        return self._found or {}


def payload_text(value: Payload | None) -> str | None:
    """Return a payload as JSON text of at most 64 KiB; None for an empty one."""
    if isinstance(value, CheckedPayload):
        return value.text
    if not value:
        return None
    if not isinstance(value, dict):
        value = dict(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"the payload is not a JSON object: {_reason(error)}", field="payload") from None
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidArgumentError(
            f"a payload has at most {MAX_PAYLOAD_BYTES} bytes as JSON, this one has {size}", field="payload"
        )
    if text.count("{") + text.count("[") > _MAX_PAYLOAD_DEPTH and _depth(text) > _MAX_PAYLOAD_DEPTH:
        raise InvalidArgumentError(f"a payload is nested at most {_MAX_PAYLOAD_DEPTH} deep", field="payload")
    return text


def text_bytes(text: str, field: str) -> int:
    """Return the number of UTF-8 bytes of a text, which must be valid Unicode without control characters."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"a {field} is text, this one is of type {type(text).__name__}", field=field)
    if _CONTROL.search(text):
        raise InvalidArgumentError(f"a {field} has no control characters, this one does: {text[:80]!r}", field=field)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"a {field} is valid Unicode, this one holds a lone surrogate: {text[:80]!r}", field=field
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply or holds itself"
    if isinstance(error, UnicodeEncodeError):
        return "it holds a lone surrogate"
    return str(error).splitlines()[0][:200]


def _depth(text: str) -> int:
    """Return how deep the objects and lists of a JSON text are nested."""
    brackets = _NO_BRACKETS.sub("", _STRINGS.sub("", text))
    return max(accumulate(map(_STEPS.__getitem__, brackets)))
