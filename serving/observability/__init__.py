"""Make the server observable: logs, metrics, traces."""
