"""Where to listen: `127.0.0.1`, `::1`, `[::1]:50051` or `unix:/run/guard.sock`, in settings."""

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from reluguard.detector.errors import SettingsError
from reluguard.service.errors import StartError

__all__ = ["Place"]

_UNIX = "unix:"
_LONGEST_PATH = 107  # bytes: Linux keeps 108 for a socket's path and its end
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place to listen: a host and a port, or the path of a unix socket.

    Attributes:
        host: a name or an address, IPv6 without brackets; empty for a unix socket.
        port: 0 lets the system choose.
        path: of a unix socket; empty for a port.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def of(cls, host: str, port: int) -> "Place":
        """Return where a setting says to listen.

        Args:
            host: a name, an IPv4 address, an IPv6 address in brackets or without, either of them
                with a port of its own, or `unix:PATH`.
            port: where `host` says none.

        Raises:
            SettingsError: none of these.
        """
        if host.startswith(_UNIX):
            path = host.removeprefix(_UNIX)
            path = path.removeprefix("//") if path.startswith("///") else path
            if not path or "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
                raise SettingsError(
                    f"expected unix:PATH with a path of 1 to {_LONGEST_PATH} bytes, got {host!r}"
                )
            return cls(path=path)
        name, own = host, ""
        if host.startswith("["):
            name, closed, own = host[1:].partition("]")
            if not closed or ":" not in name or (own and not own.startswith(":")):
                raise SettingsError(f"expected an IPv6 address in brackets, got {host!r}")
            own = own.removeprefix(":") or str(port)
        elif host.count(":") == 1:
            name, _, own = host.partition(":")
        if "/" in name:
            raise SettingsError(f"expected a host, an address or unix:PATH, got {host!r}")
        if own and not (own.isascii() and own.isdigit() and int(own) <= 65535):
            raise SettingsError(f"expected a port in 0..65535 after the host, got {host!r}")
        return cls(host=name, port=int(own) if own else port)

    @property
    def is_private(self) -> bool:
        """Whether nobody on another machine can reach it."""
        return bool(self.path) or self.host in _LOOPBACK

    @property
    def address(self) -> str:
        """What clients are given: host:port, IPv6 in brackets, or unix:PATH."""
        return self.of_port(self.port)

    def of_port(self, port: int) -> str:
        """Return what clients are given where the system chose the port."""
        if self.path:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def bound_address(self, listener: socket.socket) -> str:
        """Return what clients are given of a socket that `bound` made."""
        return self.of_port(0 if self.path else int(listener.getsockname()[1]))

    def release(self, listener: socket.socket) -> None:
        """Close a socket that `bound` made, and take its file away."""
        self.remove()
        listener.close()

    def remove(self) -> None:
        """Take the file of a unix socket away that was listened on."""
        if self.path:
            Path(self.path).unlink(missing_ok=True)

    def clear(self) -> None:
        """Take away a unix socket that nobody listens on any more.

        Raises:
            StartError: somebody listens there, or it is another kind of file.
        """
        if not self.path:
            return
        try:
            mode = Path(self.path).stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise StartError(f"can't listen on {self.address}: {error}") from error
        if not stat.S_ISSOCK(mode):
            raise StartError(f"can't listen on {self.address}: there is another file")
        with socket.socket(socket.AF_UNIX) as other:
            other.setblocking(False)  # who hangs with a full backlog is there all the same
            found = other.connect_ex(self.path)
        if found != errno.ECONNREFUSED:
            raise StartError(f"can't listen on {self.address}: somebody else does")
        Path(self.path).unlink(missing_ok=True)

    def bound(self, *, share: bool = False) -> socket.socket:
        """Return a socket that listens here.

        Args:
            share: whether other processes may listen on the same port, each for its part.

        Raises:
            StartError: the place is taken, or not this machine's.
        """
        if self.path:
            self.clear()
        listener = None
        try:
            kind, where = self._resolved()
            listener = socket.socket(kind)
            if kind == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self.host != "::"))
            if kind != socket.AF_UNIX:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if share:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(where)
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            if listener is not None:
                listener.close()
            raise StartError(f"can't listen on {self.address}: {error.strerror or error}"
                             ) from error  # fmt: skip
        return listener

    def _resolved(self) -> tuple[int, "str | tuple[str, int]"]:
        if self.path:
            return socket.AF_UNIX, self.path
        found = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # a name of both families listens on IPv4, as it did before there was a choice
        kind, _, _, _, where = min(found, key=lambda row: row[0] != socket.AF_INET)
        return kind, (str(where[0]), int(where[1]))
