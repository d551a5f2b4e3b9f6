/** The agent of `socket.io-client` 4, in Node.js and in pages. agents.mjs describes agents.
 * Not a module, so that a page can load it as a script. */

// eslint-disable-next-line no-unused-vars
function createAgent(Manager, report) {
  const clients = new Map();
  const operations = {
    open({ client, url, nsps, transports, query, token }) {
      const manager = new Manager(url, {
        transports: transports ?? undefined,
        query: query ?? undefined,
        reconnectionDelay: 50,
        reconnectionDelayMax: 200,
      });
      const own = { manager, token, sockets: {} };
      clients.set(client, own);
      for (const nsp of nsps) {
        const socket = manager.socket(nsp, { auth: (done) => done({ token: own.token }) });
        own.sockets[nsp] = socket;
        const state = (name, details) => report({ client, nsp, state: name, ...details });
        socket.on('connect', () => state('connect', { recovered: socket.recovered ?? false }));
        socket.on('disconnect', (reason) => state('disconnect', { reason }));
        socket.on('connect_error', ({ message, data }) => state('error', { message, data }));
        socket.onAny((event, ...args) => report({ client, nsp, event, args }));
        socket.connect();
      }
    },
    token({ client, token }) {
      clients.get(client).token = token;
    },
    connect({ client }) {
      for (const socket of Object.values(clients.get(client).sockets)) socket.connect();
    },
    request({ client, nsp, event, data, id }) {
      clients.get(client).sockets[nsp].emit(event, data, (...answer) => report({ client, id, answer }));
    },
    emit({ client, nsp, event, data }) {
      clients.get(client).sockets[nsp].emit(event, data);
    },
    close({ client }) {
      const { manager, sockets } = clients.get(client);
      manager.reconnection(false);
      for (const socket of Object.values(sockets)) socket.disconnect();
      clients.delete(client);
    },
  };
  return (operation) => operations[operation.op](operation);
}
