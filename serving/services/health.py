"""The standard health service, with the list of all services that the library's own lacks."""

# ruff: noqa: N802 (the contract names the methods)

from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]

from imagekin.serving.transport.call_info import Context


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """List the server's services for load balancers, with their status."""

    def __init__(self) -> None:
        super().__init__()
        self._names = [""]

    async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Set the status of a service, empty for the whole server."""
        if service not in self._names:
            self._names.append(service)
        await super().set(service, status)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """Return the status of every service."""
        statuses = {
            name: await self.Check(health_pb2.HealthCheckRequest(service=name), context) for name in self._names
        }
        return health_pb2.HealthListResponse(statuses=statuses)
