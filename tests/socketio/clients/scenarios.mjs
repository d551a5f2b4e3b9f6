/** What every client must be able to do. Each scenario runs for each client and returns the
 * result for the table in docs/clients.md; `undefined` stands for "yes".
 *
 * A scenario gets a context:
 *
 * - `open(options)`: opens a client of the user `context.user`;
 * - `peer(room)`: a user of `socket.io-client` who has joined the room;
 * - `room`: a room of its own; `server`; `kind`: the client as in kinds.mjs;
 * - `proxy()`: a TCP proxy that can interrupt connections;
 * - `restarted(prepare)`: waits until all clients have called it, and the server was killed,
 *   `prepare` has run, and the server was started again. */

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { token } from '../../browser/server.mjs';

/** Lifetime of a token that is renewed, with time for the steps before. */
const RENEWED = '12s';
/** Lifetime of a token that expires. */
const EXPIRED = '6s';

/** Joins the room of the scenario. */
async function joined(context, options) {
  const client = await context.open(options);
  const answer = await client.request('joinRoom', context.room);
  assert.equal(answer.roomId, context.room, JSON.stringify(answer));
  return client;
}

/** Waits for the next connect, joins again unless the connection is recovered, and waits for
 * the missed messages. Asserts that each arrived once. Returns what was necessary. */
async function resumed(context, client, times, contents) {
  const { recovered } = await client.connected(times);
  if (!recovered) {
    const [last] = client.events('newMessage').at(-1);
    const { error } = await client.request('joinRoom', { roomId: context.room, since: last.seq });
    assert.equal(error, undefined);
  }
  await client.until(() => client.contents().length >= contents.length, 'the missed messages');
  const { seq } = await client.request('sendMessage', { roomId: context.room, content: 'after' });
  await client.until(() => client.contents().at(-1) === 'after', 'the message after the reconnection');
  assert.deepEqual(client.contents(), [...contents, 'after'], 'each message must arrive once, in order');
  contents.push('after');
  assert.equal(seq, contents.length);
  return recovered ? 'recovered' : 'joins again';
}

export const scenarios = {
  async connect(context) {
    const client = await context.open();
    const [connected, ...more] = await client.event('connected');
    assert.equal(connected.userId, context.user);
    assert.deepEqual(more, []);
    client.close();
    const { server, user } = context;
    await client.until(
      async () => (await server.call('GET', `/rooms/@${user}/presence`)).users[0]?.connections === 0,
      'the end of the connection',
    );
  },

  async join(context) {
    await context.peer(context.room);
    const client = await joined(context);
    const answer = await client.request('joinRoom', { roomId: context.room });
    assert.equal(answer.memberCount, 2);
    assert.deepEqual(await client.request('leaveRoom', context.room), { roomId: context.room });
  },

  async send(context) {
    const client = await joined(context);
    const message = { roomId: context.room, content: 'München \u{1d11e} "/"', messageId: 'm1' };
    const sent = await client.request('sendMessage', message);
    assert.deepEqual([sent.seq, sent.messageId, sent.duplicate], [1, 'm1', undefined]);
    const again = await client.request('sendMessage', message);
    assert.deepEqual([again.seq, again.duplicate], [1, true]);
    assert.deepEqual(await context.server.log(context.room), [message.content]);
    const refused = await client.request('sendMessage', { roomId: context.room });
    assert.equal(refused.error.code, 'badRequest');
    client.send({ op: 'emit', nsp: '/', event: 'sendMessage', data: { roomId: context.room, content: 'no answer' } });
    await client.until(() => client.contents().includes('no answer'), 'the message without an acknowledgement');
  },

  /** Returns the arguments of the handler of a message. */
  async receive(context) {
    const client = await joined(context);
    const peer = await context.peer(context.room);
    await peer.request('sendMessage', { roomId: context.room, content: { text: 'a' } });
    await context.server.publish(context.room, 'newMessage', { content: { text: 'b' } });
    await client.until(() => client.contents().length === 2, 'two messages');
    const messages = client.events('newMessage');
    assert.deepEqual(messages.map(([{ content, seq }]) => [content.text, seq]), [['a', 1], ['b', 2]]);
    const kinds = messages.map((args) => args.slice(1).map((arg) => typeof arg));
    assert.deepEqual(kinds[1], kinds[0], 'messages of users and of services must have the same arguments');
    assert.deepEqual(kinds[0], context.kind.offset ? ['string'] : [], 'the arguments after the message');
    // The query turns recovery off for every client.
    const plain = await joined(context, { query: { recovery: '0' } });
    await peer.request('sendMessage', { roomId: context.room, content: 'c' });
    const [args] = await plain.until(() => {
      const received = plain.events('newMessage');
      return received.length > 0 && received;
    }, 'a message without an offset');
    assert.equal(args.length, 1, 'recovery=0 must turn the offset off');
    return context.kind.offset ? 'message, offset' : 'message';
  },

  async 'custom event'(context) {
    const client = await joined(context);
    const peer = await context.peer(context.room);
    const sent = await client.request('emit', { roomId: context.room, event: 'note', data: [1, { a: null }] });
    assert.equal(sent.seq, 1);
    const [data, meta] = await peer.event('note');
    assert.deepEqual([data, meta.senderId], [[1, { a: null }], context.user]);
    await peer.request('emit', { roomId: context.room, event: 'reply', data: 'x' });
    const [reply, replyMeta, ...offset] = await client.event('reply');
    assert.deepEqual([reply, replyMeta.roomId, replyMeta.seq], ['x', context.room, 2]);
    assert.equal(offset.length, context.kind.offset ? 1 : 0);
  },

  async namespace(context) {
    const client = await context.open({ nsps: ['/', '/support'] });
    for (const nsp of ['/', '/support']) {
      assert.equal((await client.request('joinRoom', context.room, nsp)).roomId, context.room);
    }
    assert.equal((await client.request('sendMessage', { roomId: context.room, content: 'x' }, '/support')).seq, 1);
    for (const nsp of ['/', '/support']) {
      await client.until(() => client.contents(nsp).length === 1, `the message in ${nsp}`);
    }
    const other = await context.open({ nsps: ['/nowhere'], wait: false });
    const error = await other.until(() => other.states('error', '/nowhere')[0], 'the error of an unknown namespace');
    assert.match(JSON.stringify(error), /Invalid namespace/);
  },

  async typing(context) {
    const client = await joined(context);
    const peer = await context.peer(context.room);
    await client.request('typingIndicator', { roomId: context.room, isTyping: true });
    await peer.event('userTyping', ({ userId, isTyping }) => userId === context.user && isTyping);
    await peer.request('typingIndicator', { roomId: context.room, isTyping: true });
    const args = await client.event('userTyping', ({ isTyping }) => isTyping);
    assert.equal(args.length, 1);
  },

  async presence(context) {
    const client = await joined(context);
    const peer = await context.peer(context.room);
    await client.request('setPresence', { status: 'busy', roomId: context.room });
    await peer.event('presenceUpdate', ({ userId, status }) => userId === context.user && status === 'busy');
    await peer.request('setPresence', { status: 'away', roomId: context.room });
    const args = await client.event('presenceUpdate', ({ status }) => status === 'away');
    assert.equal(args.length, 1);
    client.close();
    await peer.event('presenceUpdate', ({ userId, status }) => userId === context.user && status === 'offline');
  },

  /** Interrupts the connection twice. Returns what the client does to continue. */
  async reconnect(context) {
    const proxy = await context.proxy();
    const client = await joined(context, { url: proxy.url });
    const peer = await context.peer(context.room);
    const contents = [];
    const send = async (content) => {
      await peer.request('sendMessage', { roomId: context.room, content });
      contents.push(content);
    };
    await send('before');
    await client.until(() => client.contents().length === 1, 'the first message');
    const results = [];
    for (const times of [2, 3]) {
      proxy.cut();
      await send(`missed ${times}`);
      proxy.restore();
      results.push(await resumed(context, client, times, contents));
    }
    assert.deepEqual(results, context.kind.recovery);
    return [...new Set(results)].join(', then ');
  },

  async restart(context) {
    const client = await joined(context);
    const contents = ['before'];
    await context.server.publish(context.room, 'newMessage', { content: 'before' });
    await client.until(() => client.contents().length === 1, 'the first message');
    const before = client.states('connect').length;
    await context.restarted();
    await context.server.publish(context.room, 'newMessage', { content: 'missed' });
    contents.push('missed');
    return resumed(context, client, before + 1, contents);
  },

  /** Returns the reason of the disconnect. */
  async 'token expires'(context) {
    const renewed = await joined(context, { token: await token({ sub: context.user, ttl: RENEWED }) });
    const end = Date.now() + parseInt(RENEWED) * 1_000;
    const refreshed = await renewed.request('refreshToken', { token: await token({ sub: context.user }) });
    assert.ok(Date.parse(refreshed.expiresAt) > Date.now() + 60_000, JSON.stringify(refreshed));
    const expired = await context.open({ token: await token({ sub: context.user, ttl: EXPIRED }) });
    const { reason = 'disconnected' } = await expired.until(() => expired.states('disconnect')[0], 'the end of the connection');
    await sleep(Math.max(1_000, end + 1_000 - Date.now()));
    assert.equal(renewed.states('disconnect').length, 0, 'the renewed connection must stay open');
    assert.equal((await renewed.request('sendMessage', { roomId: context.room, content: 'x' })).seq, 1);
    assert.equal(expired.states('connect').length, 1, 'the client must not reconnect with the expired token');
    expired.send({ op: 'token', token: await token({ sub: context.user }) });
    expired.send({ op: 'connect' });
    await expired.connected(2);
    assert.equal((await expired.request('joinRoom', { roomId: context.room, since: 0 })).seq, 1);
    await expired.until(() => expired.contents().includes('x'), 'the missed message');
    // On long-polling, the reason depends on whether the session ends during a poll.
    return Array.isArray(reason) || context.kind.transport === 'polling' ? 'disconnected' : reason;
  },

  async refused(context) {
    const client = await context.open({ token: 'nonsense', wait: false });
    const error = await client.until(() => client.states('error')[0], 'the error');
    assert.match(JSON.stringify(error), /token/);
    await sleep(2_000);
    assert.ok(client.states('error').length <= 3, 'the client must not try again in a hot loop');
    assert.equal(client.states('connect').length, 0);
    return error.data?.code ?? 'message only';
  },
};
