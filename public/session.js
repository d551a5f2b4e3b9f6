/** The user, room and token of this tab. */

/** Printable characters, with spaces between them. The server also limits the bytes. */
const NAME = /^[^\p{C}\p{Z}](?:[^\p{C}\p{Z}]| )*$/u;
const MAX_NAME_BYTES = 255;
const ROOM = /^[A-Za-z0-9._:@-]{1,128}$/;
const TOKEN = /^[\w-]+\.[\w-]+\.[\w-]+$/;
const TRANSPORTS = ['native', 'socketio'];
const TIMEOUT = 10_000;

export const isName = (text) =>
  typeof text === 'string' &&
  NAME.test(text) &&
  !text.endsWith(' ') &&
  new TextEncoder().encode(text).length <= MAX_NAME_BYTES;
export const isRoom = (text) => ROOM.test(text) || (text.startsWith('@') && isName(text.slice(1)));

/** Returns the remembered user, room and transport. The room is in the URL, so that
 * it can be shared. Name and transport are stored per tab, so that two tabs can be
 * two users. A URL may contain all three. */
export function remembered() {
  const query = new URLSearchParams(location.search);
  const transport = query.get('transport') ?? sessionStorage.getItem('roomcast.transport');
  return {
    name: query.get('name') ?? sessionStorage.getItem('roomcast.name') ?? '',
    room: query.get('room') ?? '',
    transport: TRANSPORTS.includes(transport) ? transport : TRANSPORTS[0],
  };
}

/** Stores user, room and transport for the next load of this tab. */
export function remember({ name, room, transport }) {
  const address = new URL(location.href);
  address.searchParams.set('room', room);
  for (const [key, value] of Object.entries({ name, transport })) {
    if (address.searchParams.has(key)) address.searchParams.set(key, value);
    sessionStorage.setItem(`roomcast.${key}`, value);
  }
  history.replaceState(null, '', address);
}

/** Forgets the user, so that a reload shows the form. */
export function forget() {
  const address = new URL(location.href);
  address.searchParams.delete('name');
  history.replaceState(null, '', address);
  sessionStorage.removeItem('roomcast.name');
}

/** Returns a store that keeps the outbox when the tab is reloaded. */
export function outboxStore({ name, room }) {
  const key = `roomcast.outbox ${room} ${name}`;
  return {
    load: () => JSON.parse(sessionStorage.getItem(key) ?? '[]'),
    save: (outbox) => {
      if (outbox.length) sessionStorage.setItem(key, JSON.stringify(outbox));
      else sessionStorage.removeItem(key);
    },
  };
}

export class TokenError extends Error {
  constructor(message, { fatal = false, field, missing = false } = {}) {
    super(message);
    /** Another attempt cannot succeed. */
    this.fatal = fatal;
    this.field = field;
    /** The server has no route for development tokens. */
    this.missing = missing;
  }
}

/** Requests a token from `/dev/token`, which exists only in development builds. */
export async function devToken({ name, room }) {
  let answer;
  try {
    answer = await fetch('/dev/token', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ user: name, rooms: [room] }),
      signal: AbortSignal.timeout(TIMEOUT),
    });
  } catch {
    throw new TokenError('the server cannot be reached');
  }
  if (answer.ok) return (await answer.json()).token;
  if (answer.status === 404) {
    throw new TokenError('this server does not issue tokens', { fatal: true, missing: true });
  }
  const { detail, field } = await answer.json().catch(() => ({}));
  const known = { user: 'name', rooms: 'room' }[field];
  throw new TokenError(detail ?? `the server answered ${answer.status}`, { fatal: answer.status < 500, field: known });
}

/** Returns the user id in a pasted token, or `null`. The server verifies the token. */
export function readToken(token) {
  try {
    if (!TOKEN.test(token)) return null;
    const text = atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'));
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    return isName(claims.sub) ? claims.sub : null;
  } catch {
    return null;
  }
}
