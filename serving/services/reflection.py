"""Describe the services to clients without stubs: reflection v1, and the v1alpha that it was made of.

The library has v1alpha only. Version 1 has the same messages under another name, so the same handlers answer it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2,
    reflection_pb2_grpc,
)

from imagekin.serving.transport.call_info import Handler

_ALPHA, _ONE = "grpc.reflection.v1alpha", "grpc.reflection.v1"
# The services of both versions.
REFLECTION = (f"{_ONE}.ServerReflection", f"{_ALPHA}.ServerReflection")


class _Renamed:
    """A server for generated code to add the services of v1alpha to, which adds them to another one as version 1."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Do nothing: generated code gives the same methods in the other form, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add a service by its new name."""
        self._server.add_registered_method_handlers(service.replace(_ALPHA, _ONE), handlers)


def add_reflection(services: Sequence[str], server: Any) -> None:
    """Add both versions of reflection to a server.

    Args:
        services: full names of the services to describe beside them.
        server: the server.
    """
    servicer = reflection.aio.ReflectionServicer((*services, *REFLECTION), _POOL)
    for each in (server, _Renamed(server)):
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, each)


def _pool() -> DescriptorPool:
    """Return the descriptors of all generated code, with those of version 1."""
    pool = descriptor_pool.Default()
    file = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _ONE
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_ONE}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_ONE}.")
        method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_ONE}.")
    # To add the same file again changes nothing.
    pool.AddSerializedFile(file.SerializeToString())
    return pool


# With the module, as generated code is.
_POOL = _pool()
