"""Answer HTTP/JSON with the handlers of gRPC: routes, the JSON form of messages, and connections with deadlines."""
