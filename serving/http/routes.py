"""List the routes: a verb, a path, the method of the contract that answers, and what its parameters fill.

The names in a path, and the parameters of a query, are fields of the method's request. Keys of items may hold any
character, so they are parameters and never part of a path.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from imagekin.v1 import admin_pb2, collections_pb2, embedder_pb2, searcher_pb2

_FILES = (embedder_pb2, searcher_pb2, collections_pb2, admin_pb2)
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Route:
    """A route.

    Attributes:
        verb: GET, POST, PUT, PATCH or DELETE; a GET has no body.
        path: its path, with names of the request's fields in braces.
        method: `/package.Service/Method` that answers.
        member: the request's repeated field that a picture fills; empty for a route that takes none.
        member_fields: parameters that are fields of that one member.
        aliases: further parameters, each with the request's repeated field that it fills.
    """

    verb: str
    path: str
    method: str
    member: str = ""
    member_fields: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=lambda: _NONE)

    @functools.cached_property
    def descriptor(self) -> MethodDescriptor:
        """The method in the protos."""
        return methods()[self.method]

    @property
    def takes_pictures(self) -> bool:
        """True if the body may be a picture."""
        return bool(self.member) and self.verb != "GET"

    def new_request(self) -> Message:
        """Return an empty request."""
        return _class_of(self.descriptor.input_type)()

    def read_answer(self, answer: Message | bytes) -> Message:
        """Return an answer as a message; handlers return long ones serialised."""
        if isinstance(answer, Message):
            return answer
        return _class_of(self.descriptor.output_type).FromString(answer)


@functools.cache
def methods() -> dict[str, MethodDescriptor]:
    """Return the methods of the contract by `/package.Service/Method`."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _class_of(descriptor: Any) -> type[Message]:
    return GetMessageClass(descriptor)


_EMBEDDER = "/imagekin.v1.Embedder/"
_SEARCHER = "/imagekin.v1.Searcher/"
_COLLECTIONS = "/imagekin.v1.Collections/"
_KEYS = MappingProxyType({"key": "keys"})
_ONE = "/v1/collections/{name}"
_OF = "/v1/collections/{collection}"

ROUTES = (
    Route("GET", "/v1/models", f"{_EMBEDDER}ListModels"),
    Route("POST", "/v1/embed", f"{_EMBEDDER}Embed", member="images"),
    Route("GET", "/v1/collections", f"{_COLLECTIONS}ListCollections"),
    Route("POST", "/v1/collections", f"{_COLLECTIONS}CreateCollection"),
    Route("GET", _ONE, f"{_COLLECTIONS}DescribeCollection"),
    Route("DELETE", _ONE, f"{_COLLECTIONS}DropCollection"),
    Route("GET", f"{_OF}/search", f"{_SEARCHER}Search", member="queries", member_fields=("key",)),
    Route("POST", f"{_OF}/search", f"{_SEARCHER}Search", member="queries", member_fields=("key",)),
    Route("GET", f"{_OF}/classify", f"{_SEARCHER}Classify", member="queries", member_fields=("key",)),
    Route("POST", f"{_OF}/classify", f"{_SEARCHER}Classify", member="queries", member_fields=("key",)),
    Route("GET", f"{_OF}/map", f"{_COLLECTIONS}GetMap"),
    Route("POST", f"{_OF}/map", f"{_COLLECTIONS}GetMap"),
    Route("POST", f"{_OF}/map/keys", f"{_COLLECTIONS}GetMapKeys"),
    Route("GET", f"{_OF}/map/places", f"{_SEARCHER}Locate", member="queries", member_fields=("key",)),
    Route("POST", f"{_OF}/map/places", f"{_SEARCHER}Locate", member="queries", member_fields=("key",)),
    Route("GET", f"{_OF}/items", f"{_COLLECTIONS}Get", aliases=_KEYS),
    Route("POST", f"{_OF}/items/get", f"{_COLLECTIONS}Get", aliases=_KEYS),
    Route("POST", f"{_OF}/items", f"{_COLLECTIONS}Upsert", member="items", member_fields=("key", "label", "payload")),
    Route("PATCH", f"{_OF}/items", f"{_COLLECTIONS}Update"),
    Route("DELETE", f"{_OF}/items", f"{_COLLECTIONS}Delete", aliases=_KEYS),
    Route("POST", f"{_OF}/items/delete", f"{_COLLECTIONS}Delete", aliases=_KEYS),
    Route("POST", f"{_OF}/thumbnails", f"{_COLLECTIONS}GetThumbnails", aliases=_KEYS),
    Route("GET", f"{_OF}/scroll", f"{_COLLECTIONS}Scroll"),
    Route("POST", f"{_OF}/scroll", f"{_COLLECTIONS}Scroll"),
    Route("GET", f"{_OF}/count", f"{_COLLECTIONS}Count"),
    Route("POST", f"{_OF}/count", f"{_COLLECTIONS}Count"),
    Route("GET", f"{_OF}/facets", f"{_COLLECTIONS}Facet"),
    Route("POST", f"{_OF}/facets", f"{_COLLECTIONS}Facet"),
    Route("POST", f"{_OF}/snapshots", f"{_COLLECTIONS}Snapshot"),
    Route("POST", "/v1/reload", "/imagekin.v1.Admin/Reload"),
)
