"""What the end-to-end tests stand on: the server as a process, a socket that says exactly what it is told, numbers."""

from .eventually import eventually
from .frozen import frozen
from .metrics import Metrics
from .redis import Redis, RedisError, StallingProxy, has_redis
from .server import Server, free_port, run
from .wire import Closed, Frame, Response, Wire, http_get, raw_exchange

__all__ = [
    "Closed",
    "Frame",
    "Metrics",
    "Redis",
    "RedisError",
    "Response",
    "Server",
    "StallingProxy",
    "Wire",
    "eventually",
    "free_port",
    "frozen",
    "has_redis",
    "http_get",
    "raw_exchange",
    "run",
]
