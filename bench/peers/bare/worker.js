// The bare object: authenticates, stores, broadcasts and acknowledges with a Durable
// Object and the hibernation API. Each message is one insert and one send per socket.
import { DurableObject } from "cloudflare:workers";

const decoder = new TextDecoder();
const encoder = new TextEncoder();

function base64url(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
}

let key;
/** Returns the claims of a valid HS256 token, or null. */
async function verify(token, secret) {
  key ??= await crypto.subtle.importKey("raw", encoder.encode(secret), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  const parts = token.split(".");
  if (parts.length !== 3) return null;
  const [header, payload, signature] = parts;
  try {
    if (JSON.parse(decoder.decode(base64url(header))).alg !== "HS256") return null;
    const signed = encoder.encode(`${header}.${payload}`);
    if (!(await crypto.subtle.verify("HMAC", key, base64url(signature), signed))) return null;
    const claims = JSON.parse(decoder.decode(base64url(payload)));
    return typeof claims.sub === "string" && claims.exp * 1000 > Date.now() ? claims : null;
  } catch {
    return null;
  }
}

export class Room extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.sql = ctx.storage.sql;
    this.sql.exec("CREATE TABLE IF NOT EXISTS messages (seq INTEGER PRIMARY KEY, frame TEXT NOT NULL)");
    this.head = this.sql.exec("SELECT coalesce(max(seq), 0) AS head FROM messages").one().head;
    this.stores = env.STORE !== "nothing";
    this.rowsWritten = 0;
    this.messages = 0;
    ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
  }

  async fetch(request) {
    const url = new URL(request.url);
    if (url.pathname.endsWith("/stats")) {
      return Response.json({ rowsWritten: this.rowsWritten, messages: this.messages });
    }
    const userId = request.headers.get("x-user");
    if (url.pathname === "/publish") {
      const { messages } = await request.json();
      const results = [];
      for (const { data } of messages) this.send(userId, data, (receipt) => results.push(receipt));
      return Response.json({ results });
    }
    const [client, server] = Object.values(new WebSocketPair());
    this.ctx.acceptWebSocket(server);
    server.serializeAttachment({ userId });
    server.send(JSON.stringify({ event: "connected", data: { connectionId: crypto.randomUUID(), userId, seq: this.head } }));
    const since = url.searchParams.get("since");
    if (since !== null) {
      for (const { frame } of this.sql.exec("SELECT frame FROM messages WHERE seq > ? ORDER BY seq", Number(since))) {
        server.send(frame);
      }
    }
    return new Response(null, { status: 101, webSocket: client });
  }

  webSocketMessage(ws, text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return ws.close(4400, "not JSON");
    }
    if (message.event !== "sendMessage") return;
    const { userId } = ws.deserializeAttachment();
    this.send(userId, message.data, (receipt) => {
      // The output gate holds this frame until the insert is durable.
      if (message.id !== undefined) ws.send(JSON.stringify({ ack: message.id, data: receipt }));
    });
  }

  /** Stores and broadcasts a message. Calls `answer` with the receipt before the broadcast. */
  send(senderId, data, answer) {
    const receipt = { messageId: crypto.randomUUID(), seq: ++this.head, timestamp: new Date().toISOString() };
    const frame = JSON.stringify({ event: "newMessage", data: { ...data, ...receipt, senderId } });
    if (this.stores) {
      this.rowsWritten += this.sql.exec("INSERT INTO messages VALUES (?, ?)", receipt.seq, frame).rowsWritten;
    }
    this.messages++;
    answer(receipt);
    for (const socket of this.ctx.getWebSockets()) socket.send(frame);
  }

  webSocketClose(ws, code) {
    try {
      ws.close(code === 1005 || code === 1006 ? 1000 : code);
    } catch {
      // The runtime has already closed the socket.
    }
  }
}

/** Returns the request for the object with the user of the token, or null. */
async function authenticated(request, url, env, body) {
  const token = request.headers.get("authorization")?.replace(/^Bearer /, "") ?? url.searchParams.get("token");
  const claims = token && (await verify(token, env.JWT_SECRET));
  if (!claims) return null;
  const inner = new Request(request, body && { body: JSON.stringify(body) });
  inner.headers.set("x-user", claims.sub);
  return inner;
}

const unauthorized = () => new Response("unauthorized", { status: 401 });

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const object = (room) => env.ROOMS.get(env.ROOMS.idFromName(room));
    if (url.pathname === "/publish") {
      const body = await request.json();
      const messages = body.messages ?? [body];
      const inner = await authenticated(request, url, env, { messages });
      if (!inner) return unauthorized();
      const answer = await object(messages[0].room).fetch(inner);
      return body.messages ? answer : Response.json((await answer.json()).results[0]);
    }
    const match = /^\/rooms\/([\w.:@-]{1,128})\/(ws|stats)$/.exec(url.pathname);
    if (!match) return new Response("not found", { status: 404 });
    if (match[2] === "stats") return object(match[1]).fetch(request);
    if (request.headers.get("upgrade") !== "websocket") return new Response("upgrade required", { status: 426 });
    const inner = await authenticated(request, url, env);
    return inner ? object(match[1]).fetch(inner) : unauthorized();
  },
};
