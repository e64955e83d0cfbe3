"""End-to-end tests: the real `kindred` processes, their sockets, files and exit statuses."""
