// A room server on npm's `ws`: each path is a room, each message goes to all of its members, the sender included.
// Prints `listening PORT`; runs until it is ended.

import { createRequire } from "node:module";

const { WebSocketServer } = createRequire(new URL("../clients/", import.meta.url))("ws");

const rooms = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false, backlog: 4096 });

server.on("connection", (socket, request) => {
  const path = request.url;
  const members = rooms.get(path) ?? new Set();
  rooms.set(path, members.add(socket));
  socket.on("message", (data, binary) => {
    for (const member of members) member.send(data, { binary });
  });
  socket.on("close", () => {
    members.delete(socket);
    if (members.size === 0) rooms.delete(path);
  });
  socket.on("error", () => socket.terminate());
});
server.on("listening", () => console.log(`listening ${server.address().port}`));
