"""The Admin service: operates a running server."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

from encoder.errors import UnimplementedError
from kindred.v1 import admin_pb2, admin_pb2_grpc
from serving.interceptor import Context


class Admin(admin_pb2_grpc.AdminServicer):
    """Operates a running server."""

    async def Reload(self, request: admin_pb2.ReloadRequest, context: Context) -> admin_pb2.ReloadResponse:
        raise UnimplementedError("Reload is not served yet by this version: restart the server")
