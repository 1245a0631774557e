"""The balancers as processes, run from the very files in deploy/ with addresses and times of the test's own."""

from .cluster import Cluster
from .haproxy import Haproxy
from .nginx import Nginx

__all__ = ["Cluster", "Haproxy", "Nginx"]
