// Socket.IO with the Redis adapter: what one writes by hand for the job
// "authenticate, join, store, broadcast, acknowledge" on Node. Several of these
// processes make one service, as the adapter has it.
//
// usage: node server.mjs   with PORT, REDIS_URL, JWT_SECRET
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { jwtVerify } from "jose";
import { createClient } from "redis";
import { Server } from "socket.io";

const secret = new TextEncoder().encode(process.env.JWT_SECRET);
const redis = createClient({ url: process.env.REDIS_URL });
const [pub, sub] = [redis.duplicate(), redis.duplicate()];
await Promise.all([redis, pub, sub].map((client) => client.connect()));

const http = createServer((_, response) => response.writeHead(404).end());
const io = new Server(http, { adapter: createAdapter(pub, sub), transports: ["websocket"], serveClient: false });

io.use(async (socket, next) => {
  try {
    const { payload } = await jwtVerify(socket.handshake.query.token, secret, { algorithms: ["HS256"] });
    socket.data.userId = payload.sub;
    next();
  } catch {
    next(new Error("unauthorized"));
  }
});

io.on("connection", (socket) => {
  let room;
  socket.on("joinRoom", async (name, answer) => {
    await socket.join(name);
    room = name;
    answer({ roomId: room, seq: Number((await redis.get(`${room}:seq`)) ?? 0) });
  });

  // What one socket sends stays in order: each step asks Redis over the same
  // connection, which answers in the order it was asked.
  socket.on("sendMessage", async (data, answer) => {
    const seq = await redis.incr(`${room}:seq`);
    const message = {
      ...data,
      roomId: room,
      messageId: `${room}:${seq}`,
      senderId: socket.data.userId,
      seq,
      timestamp: new Date().toISOString(),
    };
    await redis.rPush(`${room}:log`, JSON.stringify(message));
    io.to(room).emit("newMessage", message);
    answer({ messageId: message.messageId, seq, timestamp: message.timestamp });
  });
});

// Whoever started it tries whether the port listens.
http.listen(Number(process.env.PORT), "127.0.0.1");
