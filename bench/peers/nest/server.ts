// The kind of backend that roomcast replaces: a NestJS gateway with Socket.IO, its
// Redis adapter and Bull. Several processes form one service by the adapter.
//
// usage: node build/server.js   with PORT, REDIS_PORT, JWT_SECRET
import "reflect-metadata";
import { randomUUID } from "node:crypto";
import { BullModule, InjectQueue, Process, Processor } from "@nestjs/bull";
import {
  BadRequestException,
  Body,
  Controller,
  ForbiddenException,
  Headers,
  HttpCode,
  Inject,
  Injectable,
  Module,
  Post,
  UnauthorizedException,
} from "@nestjs/common";
import { NestFactory } from "@nestjs/core";
import { JwtModule, JwtService } from "@nestjs/jwt";
import { IoAdapter } from "@nestjs/platform-socket.io";
import { SubscribeMessage, WebSocketGateway, WebSocketServer, WsException } from "@nestjs/websockets";
import { createAdapter } from "@socket.io/redis-adapter";
import type { Job, Queue } from "bull";
import { Redis } from "ioredis";
import type { Server, ServerOptions, Socket } from "socket.io";

const redisAt = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT) };
const QUEUE = "message-delivery";

/** The fields that are added to the data of a `newMessage`. */
interface Message {
  roomId: string;
  messageId: string;
  senderId: string;
  seq: number;
  timestamp: string;
}

/** The state of rooms in Redis. */
@Injectable()
class Rooms {
  private readonly redis = new Redis(redisAt);

  async head(roomId: string): Promise<number> {
    return Number((await this.redis.get(`${roomId}:seq`)) ?? 0);
  }

  nextSeq(roomId: string): Promise<number> {
    return this.redis.incr(`${roomId}:seq`);
  }

  append(message: Message): Promise<number> {
    return this.redis.rpush(`${message.roomId}:log`, JSON.stringify(message));
  }

  async after(roomId: string, since: number): Promise<Message[]> {
    const stored = await this.redis.lrange(`${roomId}:log`, since, -1);
    // Two processes may append in another order than their numbers.
    return stored.map((text) => JSON.parse(text)).sort((a, b) => a.seq - b.seq);
  }

  arrived(roomId: string, userId: string): Promise<number> {
    return this.redis.srem(`${roomId}:offline`, userId);
  }

  left(roomId: string, userId: string): Promise<number> {
    return this.redis.sadd(`${roomId}:offline`, userId);
  }

  offline(roomId: string): Promise<number> {
    return this.redis.scard(`${roomId}:offline`);
  }
}

@WebSocketGateway()
class ChatGateway {
  @WebSocketServer() private readonly server: Server;

  constructor(
    @Inject(Rooms) private readonly rooms: Rooms,
    @Inject(JwtService) private readonly jwt: JwtService,
    @InjectQueue(QUEUE) private readonly queue: Queue<Message>,
  ) {}

  afterInit(server: Server) {
    server.use(async (socket, next) => {
      try {
        const { sub } = await this.jwt.verifyAsync(String(socket.handshake.query.token));
        socket.data.userId = sub;
        next();
      } catch {
        next(new Error("unauthorized"));
      }
    });
  }

  handleConnection(socket: Socket) {
    // The hook of Nest is called after the socket has left its rooms.
    socket.on("disconnecting", () => {
      for (const room of socket.rooms) {
        if (room !== socket.id) void this.rooms.left(room, socket.data.userId);
      }
    });
  }

  @SubscribeMessage("joinRoom")
  async join(socket: Socket, request: string | { roomId: string; since?: number }) {
    const { roomId, since } = typeof request === "string" ? { roomId: request } : request;
    await socket.join(roomId);
    const [seq, missed] = await Promise.all([
      this.rooms.head(roomId),
      since === undefined ? [] : this.rooms.after(roomId, since),
      this.rooms.arrived(roomId, socket.data.userId),
    ]);
    for (const message of missed) socket.emit("newMessage", message);
    return { roomId, seq };
  }

  @SubscribeMessage("sendMessage")
  async send(socket: Socket, data: { roomId: string }) {
    if (!socket.rooms.has(data?.roomId)) throw new WsException("not in that room");
    const { messageId, seq, timestamp } = await this.deliver(data.roomId, socket.data.userId, data);
    return { messageId, seq, timestamp };
  }

  /**
   * Numbers, stores, queues and broadcasts a message. Messages of one sender stay in
   * order, because each step uses the same Redis connections, which answer in order.
   */
  async deliver(roomId: string, senderId: string, data: object): Promise<Message> {
    const seq = await this.rooms.nextSeq(roomId);
    const message = { ...data, roomId, messageId: randomUUID(), senderId, seq, timestamp: new Date().toISOString() };
    await Promise.all([this.rooms.append(message), this.queue.add(message, { removeOnComplete: true })]);
    this.server.to(roomId).emit("newMessage", message);
    return message;
  }
}

/** Processes the messages for offline users. */
@Processor(QUEUE)
class DeliveryProcessor {
  constructor(@Inject(Rooms) private readonly rooms: Rooms) {}

  @Process()
  async deliver({ data }: Job<Message>) {
    // Offline users would be notified here. Nothing is stored for them, because they
    // resume from the log with `since`.
    return this.rooms.offline(data.roomId);
  }
}

interface Publication {
  room: string;
  event: string;
  data: object;
}

@Controller("publish")
class PublishController {
  constructor(
    @Inject(ChatGateway) private readonly gateway: ChatGateway,
    @Inject(JwtService) private readonly jwt: JwtService,
  ) {}

  @Post()
  @HttpCode(200)
  async publish(@Headers("authorization") authorization: string, @Body() body: Publication | { messages: Publication[] }) {
    const service = await this.service(authorization);
    if (!("messages" in body)) return this.one(service, body);
    return { results: await Promise.all(body.messages.map((publication) => this.one(service, publication))) };
  }

  private async service(authorization = ""): Promise<string> {
    const claims = await this.jwt.verifyAsync(authorization.replace(/^Bearer /, "")).catch(() => {
      throw new UnauthorizedException();
    });
    if (claims.role !== "service") throw new ForbiddenException();
    return claims.sub;
  }

  private async one(service: string, { room, event, data }: Publication) {
    if (typeof room !== "string" || event !== "newMessage") throw new BadRequestException();
    const { roomId, seq, messageId, timestamp } = await this.gateway.deliver(room, service, data);
    return { roomId, seq, messageId, timestamp };
  }
}

class RedisIoAdapter extends IoAdapter {
  override createIOServer(port: number, options?: ServerOptions): Server {
    const own: Partial<ServerOptions> = { transports: ["websocket"], serveClient: false };
    const server: Server = super.createIOServer(port, { ...options, ...own } as ServerOptions);
    server.adapter(createAdapter(new Redis(redisAt), new Redis(redisAt)));
    return server;
  }
}

@Module({
  imports: [
    JwtModule.register({ secret: process.env.JWT_SECRET, verifyOptions: { algorithms: ["HS256"] } }),
    BullModule.forRoot({ redis: redisAt }),
    BullModule.registerQueue({ name: QUEUE }),
  ],
  controllers: [PublishController],
  providers: [Rooms, ChatGateway, DeliveryProcessor],
})
class AppModule {}

const app = await NestFactory.create(AppModule, { logger: ["error", "fatal"] });
app.useWebSocketAdapter(new RedisIoAdapter(app));
// The caller polls the port until it listens.
await app.listen(Number(process.env.PORT), "127.0.0.1");
