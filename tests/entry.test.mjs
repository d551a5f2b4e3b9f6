// Tests the main module of the Worker (xtask/src/entry.js) with JavaScript in place of
// the Rust code. tests/e2e/failures.rs tests the same module on workerd.
import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { pathToFileURL } from 'node:url';

const folder = mkdtempSync(join(tmpdir(), 'roomcast-entry-'));
after(() => rmSync(folder, { recursive: true }));
writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
copyFileSync(new URL('../xtask/src/entry.js', import.meta.url), join(folder, 'entry.js'));
writeFileSync(
  join(folder, 'index.js'),
  `
    let replaced;
    export const onReplace = (listener) => { replaced = listener; };
    /** Does the same as the glue code when Rust panics. */
    export const panic = () => replaced();
    export const constructed = [];
    class RustClass {
      constructor(ctx, env) { constructed.push(this); this.ctx = ctx; this.env = env; }
      fetch(request) { return request.answer; }
      webSocketMessage(socket, message) { this.received = [socket, message]; }
    }
    export class Room extends RustClass { alarm() {} }
    export class Gateway extends RustClass {}
    export class Revocations extends RustClass {}
    export class Tickets extends RustClass {}
    export const fetch = (request) => request.answer;
  `,
);
const load = (file) => import(pathToFileURL(join(folder, file)));
const glue = await load('index.js');
const entry = await load('entry.js');

test('an object is constructed again after a panic, when its next event arrives', () => {
  glue.constructed.length = 0;
  const room = new entry.Room('ctx', 'env');
  room.webSocketMessage('socket', 'first');
  assert.equal(glue.constructed.length, 1);
  glue.panic();
  assert.equal(glue.constructed.length, 1);
  room.webSocketMessage('socket', 'second');
  const [old, current] = glue.constructed;
  assert.deepEqual(old.received, ['socket', 'first']);
  assert.deepEqual({ ...current }, { ctx: 'ctx', env: 'env', received: ['socket', 'second'] });
});

test('calls in progress fail at a panic, and calls after it do not', async () => {
  const room = new entry.Room();
  const never = new Promise(() => {});
  const interrupted = room.fetch({ answer: never });
  const answered = await room.fetch({ answer: Promise.resolve('answer') });
  glue.panic();
  await assert.rejects(interrupted, /interrupted by a panic/);
  assert.equal(answered, 'answer');
  assert.equal(await room.fetch({ answer: Promise.resolve('answer') }), 'answer');
  await assert.rejects(room.fetch({ answer: Promise.reject(new Error('its own')) }), /its own/);
});

test('an interrupted request is answered by a problem', async (context) => {
  context.mock.method(console, 'error', () => {});
  const interrupted = entry.default.fetch({ answer: new Promise(() => {}) });
  glue.panic();
  const response = await interrupted;
  assert.equal(response.status, 500);
  assert.equal(response.headers.get('content-type'), 'application/problem+json');
  assert.equal((await response.json()).code, 'internal');
});

test('a class has the handlers that its Rust class has', () => {
  assert.equal(typeof entry.Room.prototype.alarm, 'function');
  assert.equal(entry.Tickets.prototype.alarm, undefined);
});
