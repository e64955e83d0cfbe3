"""Tests of HTTP: real servers, real sockets."""
