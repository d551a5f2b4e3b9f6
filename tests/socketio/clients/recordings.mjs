/** What clients send that the tests cannot run: the handshakes and frames of the libraries for
 * Java, Swift, Dart, .NET and Go, written from their sources. `source` names the files.
 *
 * A recording has the headers and queries of the requests and the texts of the packets.
 * [`recordedAgent`] replays them: it opens a connection as the library does, sends each operation
 * as the packet of the library, and reports what the server sends. */

import { request as httpRequest } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { WebSocket } from 'ws';

const BASE64 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_';

/** The time in base 64: `t` of several libraries. */
function yeast() {
  let text = '';
  for (let time = Date.now(); time > 0; time = Math.floor(time / 64)) text = BASE64[time % 64] + text;
  return text;
}

/** JSON as Foundation and Android write it: with escaped slashes. */
const escapedJson = (value) => JSON.stringify(value).replaceAll('/', '\\/');

/** JSON as `encoding/json` of Go writes it: `<`, `>` and `&` are escaped. */
const goJson = (value) =>
  JSON.stringify(value).replace(/[<>&]/g, (text) => `\\u00${text.charCodeAt(0).toString(16)}`);

/** The namespace of a packet: none for `/`. */
const short = (nsp) => (nsp === '/' ? '' : `${nsp},`);

/** The packets as most libraries write them. */
const packets = (json = JSON.stringify, prefix = short) => ({
  connect: (nsp, auth) => `40${prefix(nsp)}${json(auth)}`,
  event: (nsp, id, event, data) => `42${short(nsp)}${id ?? ''}${json([event, data])}`,
  disconnect: (nsp) => `41${prefix(nsp)}`,
});

export const recordings = [
  {
    name: 'socket.io-client-java',
    version: '2.1.2',
    // https://github.com/socketio/engine.io-client-java: transports/Polling.java,
    // transports/PollingXHR.java, transports/WebSocket.java; okhttp 3.12.12: BridgeInterceptor,
    // RealWebSocket. https://github.com/socketio/socket.io-client-java: client/Socket.java.
    // org.json of Android escapes slashes.
    headers: { 'User-Agent': 'okhttp/3.12.12', 'Accept-Encoding': 'gzip' },
    pollingHeaders: { Accept: '*/*' },
    contentType: 'text/plain;charset=UTF-8',
    deflate: false,
    query: ({ transport, sid }) => ({ ...(sid && { sid }), EIO: 4, ...(transport === 'polling' && { t: yeast() }), transport }),
    ...packets(escapedJson),
  },
  {
    name: 'socket.io-client-swift',
    version: '16.1.1 with Starscream 4.0.6',
    // https://github.com/socketio/socket.io-client-swift: Engine/SocketEngine.swift (createURLs),
    // Engine/SocketEnginePollable.swift, Manager/SocketManager.swift (connectSocket: the
    // namespace is always written). https://github.com/daltoniam/Starscream:
    // Framer/HTTPHandler.swift (createUpgrade: the origin is that of the URL, so its scheme is
    // `ws`). Polling uses URLSession, which sends the name of the app.
    websocketHeaders: (url) => ({ Origin: url.origin.replace('http', 'ws') }),
    pollingHeaders: { 'User-Agent': 'Example/1 CFNetwork/1410.0.3 Darwin/22.6.0', Accept: '*/*', 'Accept-Language': 'en-US,en;q=0.9', 'Accept-Encoding': 'gzip, deflate' },
    contentType: 'text/plain; charset=UTF-8',
    deflate: false,
    query: ({ transport, sid }) => ({ transport, ...(transport === 'polling' && { b64: 1 }), EIO: 4, ...(sid && { sid }) }),
    ...packets(escapedJson, (nsp) => `${nsp},`),
  },
  {
    name: 'socket_io_client (Dart)',
    version: '3.1.2',
    // https://github.com/rikulo/socket.io-client-dart: lib/src/engine/transport.dart,
    // transport/polling_transport.dart (t is the time in base 36),
    // transport/io_websocket_transport.dart; lib/src/socket.dart (onopen). Dart SDK: dart:io,
    // WebSocket.connect.
    headers: { 'user-agent': 'Dart/3.5 (dart:io)', 'accept-encoding': 'gzip' },
    websocketHeaders: () => ({ 'cache-control': 'no-cache' }),
    pollingHeaders: { accept: '*/*' },
    contentType: 'text/plain; charset=utf-8',
    deflate: true,
    query: ({ transport, sid }) => ({ EIO: 4, transport, ...(transport === 'polling' && { t: Date.now().toString(36) }), ...(sid && { sid }) }),
    ...packets(),
  },
  {
    name: 'SocketIOClient (.NET)',
    version: '3.1.2',
    // https://github.com/doghappy/socket.io-client-csharp: UriConverters/UriConverter.cs,
    // Transport/Http/HttpTransport.cs (t is the time in seconds),
    // Transport/WebSockets/WebSocketTransport.cs. .NET: ClientWebSocket sends neither
    // User-Agent nor Origin.
    pollingHeaders: {},
    contentType: 'text/plain; charset=utf-8',
    deflate: false,
    query: ({ transport, sid }) => ({ EIO: 4, transport, ...(sid && { sid }), ...(transport === 'polling' && { t: Math.floor(Date.now() / 1_000) }) }),
    ...packets(),
  },
  {
    name: 'socket.io-client-go (zishang520)',
    version: '1.0.0',
    // https://github.com/zishang520/engine.io-client-go: engine/polling.go, engine/websocket.go
    // (gorilla/websocket without compression; url.Values.Encode sorts the query, and t is sent
    // by WebSocket as well). net/http sends the User-Agent.
    headers: { 'User-Agent': 'Go-http-client/1.1' },
    pollingHeaders: { Accept: '*/*', 'Accept-Encoding': 'gzip' },
    contentType: 'text/plain;charset=UTF-8',
    deflate: false,
    query: ({ transport, sid }) => ({ EIO: 4, ...(sid && { sid }), t: yeast(), transport }),
    ...packets(goJson),
  },
];

/** One connection of a recorded client. */
class Connection {
  #recording;
  #options;
  #report;
  #socket;
  #sid;
  #isPolling = false;
  #waiting = [];
  #requests = new Set();
  isClosed = false;

  constructor(recording, options, report) {
    this.#recording = recording;
    this.#options = options;
    this.#report = report;
  }

  /** Opens the connection and handles its packets until it ends. Returns `true` if the client
   * reconnects by itself. */
  async run() {
    const { transports } = this.#options;
    try {
      if (transports?.[0] === 'websocket') await this.#runWebSocket();
      else await this.#runPolling(transports === null);
    } catch (error) {
      if (!this.isClosed) this.#report({ nsp: '/', state: 'error', message: String(error.message) });
    }
    for (const request of this.#requests) request.destroy();
    this.#socket?.terminate();
  }

  #url(transport) {
    const url = new URL('/socket.io/', this.#options.url);
    const query = { ...this.#recording.query({ transport, sid: this.#sid }), ...this.#options.query };
    url.search = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)])).toString();
    return url;
  }

  /** Opens a WebSocket. `handle` gets each text until the socket ends. */
  #openWebSocket(handle) {
    const url = this.#url('websocket');
    const { headers = {}, websocketHeaders = () => ({}), deflate } = this.#recording;
    const socket = new WebSocket(url.href.replace('http', 'ws'), {
      headers: { ...headers, ...websocketHeaders(url) }, perMessageDeflate: deflate,
    });
    socket.on('message', (data) => handle(data.toString()));
    const ended = new Promise((resolve, reject) => {
      socket.on('close', resolve);
      socket.on('error', reject);
    });
    return { socket, ended };
  }

  async #runWebSocket() {
    const { socket, ended } = this.#openWebSocket((text) => this.#handle(text));
    this.#socket = socket;
    await ended;
  }

  async #runPolling(upgrades) {
    this.#isPolling = true;
    this.#handle(await this.#request('GET'));
    this.#flush();
    const upgraded = upgrades ? this.#upgrade() : null;
    while (this.#isPolling && !this.isClosed) {
      const body = await this.#request('GET');
      for (const packet of body.split('\x1e')) this.#handle(packet);
    }
    this.#polled();
    await upgraded;
  }

  #polled = () => {};

  /** Changes from long-polling to a WebSocket. Ends with the socket. */
  async #upgrade() {
    const polled = new Promise((resolve) => (this.#polled = resolve));
    const { socket, ended } = this.#openWebSocket(async (text) => {
      if (text !== '3probe') return this.#handle(text);
      // The libraries wait until no request is open. The server ends the poll that waits.
      this.#isPolling = false;
      await Promise.all([polled, this.#posting]);
      this.#socket = socket;
      socket.send('5');
      return this.#flush();
    });
    socket.on('open', () => socket.send('2probe'));
    await ended;
  }

  #request(method, body) {
    const { headers = {}, pollingHeaders = {}, contentType } = this.#recording;
    return new Promise((resolve, reject) => {
      const request = httpRequest(this.#url('polling'), {
        method,
        headers: { ...headers, ...pollingHeaders, 'Accept-Encoding': 'identity', ...(body && { 'Content-Type': contentType }) },
      });
      this.#requests.add(request);
      request.on('error', reject);
      request.on('response', (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (data) => (text += data));
        response.on('error', reject);
        response.on('end', () => {
          this.#requests.delete(request);
          if (response.statusCode === 200) resolve(text);
          else reject(new Error(`${response.statusCode} ${text}`));
        });
      });
      request.end(body);
    });
  }

  send(packet) {
    this.#waiting.push(packet);
    this.#flush();
  }

  /** The POST request that is open. */
  #posting = null;

  /** Sends the packets that wait. During the upgrade they go on waiting. */
  async #flush() {
    if (!this.#sid || this.#posting || this.#waiting.length === 0) return;
    if (!this.#isPolling) {
      if (this.#socket?.readyState !== WebSocket.OPEN) return;
      for (const packet of this.#waiting.splice(0)) this.#socket.send(packet);
      return;
    }
    this.#posting = this.#request('POST', this.#waiting.splice(0).join('\x1e')).catch(() => {});
    await this.#posting;
    this.#posting = null;
    this.#flush();
  }

  #handle(text) {
    const { nsps, token } = this.#options;
    switch (text[0]) {
      case '0':
        this.#sid = JSON.parse(text.slice(1)).sid;
        for (const nsp of nsps) this.send(this.#recording.connect(nsp, { token: token() }));
        break;
      case '1':
        this.close();
        break;
      case '2':
        this.send('3');
        break;
      case '4':
        this.#handlePacket(text.slice(1));
        break;
      default:
    }
  }

  #handlePacket(text) {
    const [, type, name, id, body] = text.match(/^(\d)(?:(\/[^,]*),?)?(\d*)(.*)$/s);
    const nsp = name ?? '/';
    const data = body === '' ? undefined : JSON.parse(body);
    switch (type) {
      case '0':
        this.#report({ nsp, state: 'connect' });
        break;
      case '1':
        this.#options.ended();
        this.#report({ nsp, state: 'disconnect', reason: 'io server disconnect' });
        this.close();
        break;
      case '2':
        this.#report({ nsp, event: data[0], args: data.slice(1) });
        break;
      case '3':
        this.#report({ nsp, id: Number(id), answer: data });
        break;
      case '4':
        this.#options.ended();
        this.#report({ nsp, state: 'error', ...data });
        break;
      default:
    }
  }

  close() {
    this.isClosed = true;
    for (const request of this.#requests) request.destroy();
    this.#socket?.close();
  }
}

/** Starts an agent that replays a recording. */
export function recordedAgent(recording) {
  return (report) => {
    const clients = new Map();
    const run = async (client, own) => {
      own.isWanted = true;
      while (own.isWanted) {
        const options = { ...own.options, token: () => own.token, ended: () => (own.isWanted = false) };
        own.connection = new Connection(recording, options, (one) => report({ client, ...one }));
        await own.connection.run();
        await sleep(100);
      }
    };
    const operations = {
      open({ client, token, op, ...options }) {
        const own = { options, token };
        clients.set(client, own);
        run(client, own);
      },
      token: ({ client, token }) => (clients.get(client).token = token),
      connect: ({ client }) => run(client, clients.get(client)),
      request: ({ client, nsp, event, data, id }) =>
        clients.get(client).connection.send(recording.event(nsp, id, event, data)),
      emit: ({ client, nsp, event, data }) =>
        clients.get(client).connection.send(recording.event(nsp, null, event, data)),
      close({ client }) {
        const own = clients.get(client);
        own.isWanted = false;
        for (const nsp of own.options.nsps) own.connection.send(recording.disconnect(nsp));
        own.connection.send('1');
        setTimeout(() => own.connection.close(), 500).unref();
      },
    };
    return { send: (operation) => operations[operation.op](operation), stop() {}, errors: () => '' };
  };
}
