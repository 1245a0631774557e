"""What the end-to-end tests stand on: the server as a process, a socket that says exactly what it is told, numbers."""

from .eventually import eventually
from .metrics import Metrics
from .server import Answer, Server, free_port
from .wire import Closed, Frame, Response, Wire, http_get, raw_exchange

__all__ = [
    "Answer",
    "Closed",
    "Frame",
    "Metrics",
    "Response",
    "Server",
    "Wire",
    "eventually",
    "free_port",
    "http_get",
    "raw_exchange",
]
