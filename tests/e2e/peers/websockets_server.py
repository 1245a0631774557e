"""A room server on PyPI's `websockets`: each path is a room, each message goes to all of its members, the sender included.

Prints `listening PORT`; runs until it is ended.
"""

import asyncio
from collections import defaultdict

from websockets.asyncio.server import broadcast, serve

rooms = defaultdict(set)


async def member(connection):
    path = connection.request.path
    rooms[path].add(connection)
    try:
        async for message in connection:
            broadcast(rooms[path], message)
    finally:
        rooms[path].discard(connection)
        if not rooms[path]:
            del rooms[path]


async def main():
    async with serve(member, "127.0.0.1", 0, compression=None, backlog=4096) as server:
        print("listening", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
