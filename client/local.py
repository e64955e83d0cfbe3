"""Serve a data folder to one client: in a process of its own, behind a socket that only this user reaches.

So that `Client.local` answers as a server does, with the same code, methods and errors.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self, TypeAlias

from imagekin.errors import FailedPreconditionError, ImagekinError, InvalidArgumentError

ModelFiles: TypeAlias = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]

_SOCKET = "socket"
# The address of a Unix socket has at most 107 bytes on Linux, 103 on macOS.
_LONGEST_FOLDER = 90
_POLL_SECONDS = 0.02
_STOP_SECONDS = 40.0


class LocalServer:
    """A server process that ends with this one, or when it is stopped.

    Attributes:
        address: where it listens.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self.address = f"unix:{folder / _SOCKET}"
        self._process = process
        self._folder = folder

    @classmethod
    def start(cls, data_dir: str | os.PathLike[str], model: ModelFiles | None, *, read_only: bool) -> Self:
        """Start a server and return once it listens.

        Raises:
            InvalidArgumentError: the arguments cannot be used.
            FailedPreconditionError: the folder or a model cannot be opened; the message says why.
        """
        folder = _private_folder()
        try:
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 (arguments are a list: no shell reads them)
                    _command(folder, data_dir, model, read_only=read_only),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env={name: value for name, value in os.environ.items() if not name.startswith("IMAGEKIN_")},
                    start_new_session=True,  # Ctrl-C is for this process, which then closes the client
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        server = cls(process, folder)
        try:
            server._wait()
        except BaseException:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        """Stop the server once its calls are finished. Safe to call twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        """Return once the server listens; raise its error if it ends."""
        while not self._listens():
            status = self._process.poll()
            if status is not None:
                raise self._failure(status)
            time.sleep(_POLL_SECONDS)

    def _listens(self) -> bool:
        """Return whether the server takes connections: its socket is there a moment before it does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(os.fsencode(self._folder / _SOCKET))
            except OSError:
                return False
            return True

    def _failure(self, status: int) -> ImagekinError:
        lines = (self._folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        message = lines[-1].removeprefix("imagekin: ") if lines else f"the local server ended with status {status}"
        kind = InvalidArgumentError if status == InvalidArgumentError.exit_status else FailedPreconditionError
        return kind(message)


class AsyncLocalServer:
    """The same for an event loop, which does not wait for the process."""

    def __init__(self, server: LocalServer) -> None:
        self.address = server.address
        self._server = server

    @classmethod
    async def start(cls, data_dir: str | os.PathLike[str], model: ModelFiles | None, *, read_only: bool) -> Self:
        """Start a server and return once it listens; see `LocalServer.start`."""
        return cls(await asyncio.to_thread(LocalServer.start, data_dir, model, read_only=read_only))

    async def stop(self) -> None:
        """Stop the server once its calls are finished. Safe to call twice."""
        await asyncio.to_thread(self._server.stop)


def _private_folder() -> Path:
    """Make a folder for the socket that nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="imagekin-"))
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        with contextlib.suppress(OSError):
            folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="imagekin-", dir="/tmp"))
    return folder


def _command(folder: Path, data_dir: str | os.PathLike[str], model: ModelFiles | None, *, read_only: bool) -> list[str]:
    models: list[str] = []
    if isinstance(model, Mapping):
        models = [f"--model={name}={os.fspath(path)}" for name, path in model.items()]
    elif model is not None:
        models = [f"--model={os.fspath(model)}"]
    return [
        *(sys.executable, "-m", "imagekin", "--config", os.devnull, "serve"),
        *("--address", f"unix:{folder / _SOCKET}", "--data-dir", os.fspath(data_dir), "--stop-with-parent"),
        *models,
        *(["--read-only"] if read_only else []),
    ]
