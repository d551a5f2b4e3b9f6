/** Errors and refusals, the same for all transports. */

const TIMEOUT = 10_000;

/** An error with a `code` of docs/protocol.md, or `disconnected` or `timeout`. */
export class RoomError extends Error {
  constructor({ code, message, retryAfterMs }) {
    super(message || code);
    this.name = 'RoomError';
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * Returns why a connection was refused or ended, as `{ status, message, … }`. Sends the
 * same token to an HTTP route of the same room, which refuses it for the same reason.
 * Returns `undefined` if the route accepts it or cannot be reached.
 */
export async function refusal({ url, room, token }) {
  const address = new URL(`/rooms/${encodeURIComponent(room)}/messages?limit=1`, url);
  try {
    const answer = await fetch(address, {
      headers: { authorization: `Bearer ${token}` },
      signal: AbortSignal.timeout(TIMEOUT),
    });
    if (answer.status === 403) return { status: 403, message: 'the token does not allow access to this room' };
    if (!answer.ok) return await problem(answer);
  } catch {
    // The server cannot be reached.
  }
  return undefined;
}

/** Returns an HTTP refusal as `{ status, error, message, retryAfterMs? }`. */
export async function problem(answer) {
  const { code, detail, title } = await answer.json().catch(() => ({}));
  const seconds = Number(answer.headers.get('retry-after'));
  return {
    status: answer.status,
    error: code ?? 'internal',
    message: detail ?? title ?? `the server answered ${answer.status}`,
    ...(seconds > 0 && { retryAfterMs: seconds * 1_000 }),
  };
}
