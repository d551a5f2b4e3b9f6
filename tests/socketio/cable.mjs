/** A cable between client and server that can be pulled: connections through it
 * end without a word of the protocols on them. */

import { connect, createServer } from 'node:net';

export class Cable {
  #sockets = new Set();
  #listener;
  /** While it is pulled nobody gets through. */
  pulled = false;

  static async to(port) {
    const cable = new Cable();
    cable.#listener = createServer((near) => {
      if (cable.pulled) return near.destroy();
      const far = connect(port, '127.0.0.1');
      for (const [from, to] of [[near, far], [far, near]]) {
        cable.#sockets.add(from);
        from.pipe(to);
        from.on('error', () => {});
        from.on('close', () => {
          cable.#sockets.delete(from);
          to.destroy();
        });
      }
    });
    await new Promise((resolve) => cable.#listener.listen(0, '127.0.0.1', resolve));
    cable.url = `http://127.0.0.1:${cable.#listener.address().port}`;
    return cable;
  }

  pull() {
    this.pulled = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  plug() {
    this.pulled = false;
  }

  close() {
    this.pull();
    this.#listener.close();
  }
}
