// A room on PartyServer that authenticates, stores, broadcasts and acknowledges. The
// protocol is that of the bare object.
import { jwtVerify } from "jose";
import { routePartykitRequest, Server } from "partyserver";

export class Room extends Server {
  static options = { hibernate: true };

  rowsWritten = 0;
  messages = 0;

  onStart() {
    this.db = this.ctx.storage.sql;
    this.db.exec("CREATE TABLE IF NOT EXISTS messages (seq INTEGER PRIMARY KEY, frame TEXT NOT NULL)");
    this.head = this.db.exec("SELECT coalesce(max(seq), 0) AS head FROM messages").one().head;
    this.ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
  }

  onConnect(connection, { request }) {
    const userId = request.headers.get("x-user");
    connection.setState({ userId });
    connection.send(JSON.stringify({ event: "connected", data: { connectionId: connection.id, userId, seq: this.head } }));
    const since = new URL(request.url).searchParams.get("since");
    if (since !== null) {
      for (const { frame } of this.db.exec("SELECT frame FROM messages WHERE seq > ? ORDER BY seq", Number(since))) {
        connection.send(frame);
      }
    }
  }

  onMessage(connection, text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return connection.close(4400, "not JSON");
    }
    if (message.event !== "sendMessage") return;
    const seq = ++this.head;
    const messageId = crypto.randomUUID();
    const timestamp = new Date().toISOString();
    const frame = JSON.stringify({
      event: "newMessage",
      data: { ...message.data, messageId, senderId: connection.state.userId, seq, timestamp },
    });
    this.rowsWritten += this.db.exec("INSERT INTO messages VALUES (?, ?)", seq, frame).rowsWritten;
    this.messages++;
    // The output gate holds this frame until the insert is durable.
    if (message.id !== undefined) connection.send(JSON.stringify({ ack: message.id, data: { messageId, seq, timestamp } }));
    this.broadcast(frame);
  }

  onRequest() {
    return Response.json({ rowsWritten: this.rowsWritten, messages: this.messages });
  }
}

let key;
/** The `onBeforeConnect` hook of PartyServer: accepts requests with a valid token. */
async function authenticate(request, secret) {
  const token =
    request.headers.get("authorization")?.replace(/^Bearer /, "") ?? new URL(request.url).searchParams.get("token");
  key ??= await crypto.subtle.importKey("raw", new TextEncoder().encode(secret), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  try {
    const { payload } = await jwtVerify(token, key, {
      algorithms: ["HS256"],
      requiredClaims: ["sub", "exp"],
    });
    request.headers.set("x-user", payload.sub);
    return request;
  } catch {
    return new Response("unauthorized", { status: 401 });
  }
}

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const match = /^\/rooms\/([\w.:@-]{1,128})\/(ws|stats)$/.exec(url.pathname);
    if (!match) return new Response("not found", { status: 404 });
    if (match[2] === "ws" && request.headers.get("upgrade") !== "websocket") {
      return new Response("upgrade required", { status: 426 });
    }
    // PartyServer's routes are /parties/{binding}/{name}.
    url.pathname = `/parties/rooms/${match[1]}`;
    return routePartykitRequest(new Request(url, request), env, {
      onBeforeConnect: (request) => authenticate(request, env.JWT_SECRET),
    });
  },
};
