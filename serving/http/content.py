"""Read the body of a request: JSON, a picture as it is, or a form with pictures, each below its ceiling in memory."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from imagekin.errors import CancelledError, InvalidArgumentError
from imagekin.serving.http.reading import parse
from imagekin.serving.transport.bodies import Bodies, unpack

_JSON = ("application/json",)
_FORM = "multipart/form-data"
_OF_CURL = "application/x-www-form-urlencoded"
_RAW = ("image/", "application/octet-stream")
# Parameters in a form, as many as in a query, and small.
_MOST_FIELDS = 64
_MOST_FIELD_BYTES = 64 * 1024
# JSON of so many bytes is parsed within a millisecond or two.
_PARSED_HERE_BYTES = 64 * 1024


class BodyTooLargeError(InvalidArgumentError):
    """The body is over its ceiling."""

    http_status = 413


class MediaTypeError(InvalidArgumentError):
    """The body is of a type that the route does not take."""

    http_status = 415


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the body.

    Attributes:
        data: the file.
        name: the name of the file in a form, empty when it has none.
    """

    data: bytes
    name: str = ""


@dataclass(slots=True)
class Content:
    """Content of a request's body.

    Attributes:
        values: the parsed JSON object, None for another body.
        pictures: the pictures, in order.
        parameters: the fields of a form, which count as parameters of the query.
        size: bytes that have been taken from `Bodies` for it.
    """

    values: Any = None
    pictures: Sequence[Picture] = ()
    parameters: Sequence[tuple[str, str]] = ()
    size: int = 0


class Reception:
    """Receive the body of one request, counting its bytes. `size` of them are to be released, also after an error.

    Args:
        request: the request.
        bodies: counts the bytes of all requests in progress.
        most: ceiling of the body's bytes, as received and unpacked.
    """

    def __init__(self, request: Request, bodies: Bodies, most: int) -> None:
        self._request = request
        self._bodies = bodies
        self._most = most
        self.size = 0

    async def content(self, *, pictures: bool) -> Content:
        """Read the body.

        Args:
            pictures: take pictures, too, and not only JSON.

        Raises:
            InvalidArgumentError: it is too large, of another type, or malformed.
            ResourceExhaustedError: the requests in progress are too large together.
            CancelledError: the caller went away.
        """
        headers = self._request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            raise self._too_large()
        if pictures and kind == _FORM:
            return await self._form()
        if pictures and kind.startswith(_RAW):
            data = await self.whole()
            return Content(pictures=(Picture(data),), size=self.size)
        data = await self.whole()
        if not data:
            return Content(size=self.size)
        if kind not in _JSON:
            known = "application/json, image/*, application/octet-stream or multipart/form-data"
            # Many are bodies that curl was given without a word on their type.
            hint = f": curl needs -H 'Content-Type: {'image/jpeg' if pictures else 'application/json'}'"
            raise MediaTypeError(
                f"send the body as {known if pictures else 'application/json'}, not {kind[:80] or 'without a type'}"
                f"{hint if kind == _OF_CURL else ''}",
                field="content-type",
            )
        here = len(data) <= _PARSED_HERE_BYTES
        return Content(parse(data) if here else await asyncio.to_thread(parse, data), size=self.size)

    async def whole(self) -> bytes:
        """Read the body as bytes, unpacked; raises as `content` does."""
        data = b"".join([chunk async for chunk in self._chunks()])
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return data
        if encoding != "gzip":
            raise MediaTypeError("the body may be packed with gzip only", field="content-encoding")
        plain = await asyncio.to_thread(unpack, data, self._most)
        self._take(len(plain))
        return plain

    async def _form(self) -> Content:
        parser = _InMemory(
            self._request.headers,
            self._chunks(),
            max_fields=_MOST_FIELDS,
            max_part_size=_MOST_FIELD_BYTES,
        )
        try:
            form = await parser.parse()
        except (MultiPartException, FormParserError, KeyError) as error:
            reason = error.message if isinstance(error, MultiPartException) else "malformed"
            raise InvalidArgumentError(f"the form cannot be read: {reason}", field="request") from None
        pictures: list[Picture] = []
        parameters: list[tuple[str, str]] = []
        try:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    pictures.append(Picture(await value.read(), value.filename or ""))
                else:
                    parameters.append((name, value))
        finally:
            await form.close()
        if not pictures:
            raise InvalidArgumentError("the form holds no picture: send it as a file", field="image")
        return Content(pictures=pictures, parameters=parameters, size=self.size)

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._request.stream():
                self._take(len(chunk))
                if self.size > self._most:
                    raise self._too_large()
                yield chunk
        except ClientDisconnect:
            raise CancelledError("the caller went away") from None

    def _take(self, size: int) -> None:
        self._bodies.take(size)
        self.size += size

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is over the limit of {self._most} bytes", field="request")


class _InMemory(MultiPartParser):
    """Keep files in memory: their bytes are counted, and a disk would be slower."""

    spool_max_size = 2**31

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int) -> None:
        super().__init__(headers, stream, **limits)
        self._ended = False

    def on_end(self) -> None:
        """Note the last boundary."""
        self._ended = True

    async def parse(self) -> FormData:
        """Parse the form.

        Raises:
            MultiPartException: it is malformed, or cut off, which Starlette takes for a form of fewer parts.
        """
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("its last boundary is missing")
        return form
