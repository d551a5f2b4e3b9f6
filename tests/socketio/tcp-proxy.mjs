/** A TCP proxy between client and server. It can end its connections as a network loss
 * does: without a close frame or a Socket.IO packet. */

import { connect, createServer } from 'node:net';

export class TcpProxy {
  #sockets = new Set();
  #listener;
  /** New connections are refused while this is `true`. */
  isCut = false;

  /** Starts a proxy to a local port. */
  static async start(port) {
    const proxy = new TcpProxy();
    proxy.#listener = createServer((client) => {
      if (proxy.isCut) return client.destroy();
      const server = connect(port, '127.0.0.1');
      for (const [from, to] of [[client, server], [server, client]]) {
        proxy.#sockets.add(from);
        from.pipe(to);
        from.on('error', () => {});
        from.on('close', () => {
          proxy.#sockets.delete(from);
          to.destroy();
        });
      }
    });
    await new Promise((resolve) => proxy.#listener.listen(0, '127.0.0.1', resolve));
    proxy.url = `http://127.0.0.1:${proxy.#listener.address().port}`;
    return proxy;
  }

  /** Ends all connections and refuses new ones. */
  cut() {
    this.isCut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Accepts connections again. */
  restore() {
    this.isCut = false;
  }

  close() {
    this.cut();
    this.#listener.close();
  }
}
