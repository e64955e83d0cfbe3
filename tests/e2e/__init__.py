"""End-to-end tests: the real `imagekin` processes, their sockets, files and exit statuses."""
