"""The Admin service: operate a running server."""

# ruff: noqa: N802, D102 (the contract names and describes the methods)

from imagekin.serving.reload import Reloader
from imagekin.serving.transport.call_info import Context
from imagekin.v1 import admin_pb2, admin_pb2_grpc


class AdminService(admin_pb2_grpc.AdminServicer):
    """Operate a running server.

    Args:
        reloader: loads models and collections anew.
    """

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    async def Reload(self, request: admin_pb2.ReloadRequest, context: Context) -> admin_pb2.ReloadResponse:
        loaded = await self._reloader.reload(tuple(request.models), tuple(request.collections))
        return admin_pb2.ReloadResponse(models=loaded.models, collections=loaded.collections)
