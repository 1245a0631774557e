"""What the end-to-end tests stand on: the server as a process, a socket that says exactly what it is told, numbers."""

from .authority import Authority
from .cluster import RedisCluster
from .eventually import eventually
from .frozen import frozen
from .load import Load, load
from .metrics import Metrics
from .peer import Peer, Scripted, has_node_ws
from .redis import Redis, RedisError, StallingProxy, has_redis
from .refused import refused
from .sentinel import Group, Sentinel
from .server import Server, free_port, run
from .wire import Closed, Frame, Response, Wire, http_get, raw_exchange

__all__ = [
    "Authority",
    "Closed",
    "Frame",
    "Group",
    "Load",
    "Metrics",
    "Peer",
    "Redis",
    "RedisCluster",
    "RedisError",
    "Response",
    "Scripted",
    "Sentinel",
    "Server",
    "StallingProxy",
    "Wire",
    "eventually",
    "free_port",
    "frozen",
    "has_node_ws",
    "has_redis",
    "http_get",
    "load",
    "raw_exchange",
    "refused",
    "run",
]
