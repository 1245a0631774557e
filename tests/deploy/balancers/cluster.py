"""Three nodes that can be stopped and started again on the same ports."""

from harness import Server

SETTINGS = """\
drain_delay_ms = 2000
drain_window_ms = 1000
drain_deadline_ms = 8000
reconnect_after_ms = 200
"""


class Node(Server):
    """A node that comes back on the ports that it had."""

    def again(self):
        """Starts it anew after its end."""
        self.stopped = False
        return self.start()


class Cluster:
    """Nodes, in the order in which the balancer's file has them."""

    def __init__(self, directory, settings=SETTINGS, count=3):
        self.nodes = []
        try:
            for index in range(count):
                node = Node(directory, settings, flags=["--node-id", f"node-{index + 1}"], shards=1)
                self.nodes.append(node)
                node.start()
        except BaseException:
            self.kill()
            raise

    def __iter__(self):
        return iter(self.nodes)

    def __len__(self):
        return len(self.nodes)

    def __getitem__(self, index):
        return self.nodes[index]

    def open_counts(self):
        """Upgraded connections of each node; `None` for one that is not there."""
        return [None if node.process.poll() is not None else int(node.open_count()) for node in self.nodes]

    def kill(self):
        for node in self.nodes:
            node.kill()


def members(node, room):
    """How many members `room` has on `node`."""
    answer = node.admin(f"/v1/rooms/{room}")
    return answer.json["members"] if answer.status == 200 else 0
