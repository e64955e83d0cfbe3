"""The page: what a browser shows at the address for HTTP; static files that call the same routes as curl."""
