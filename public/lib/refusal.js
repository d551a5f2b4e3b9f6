/** What the other side, or the way there, refused: the same for all transports. */

const PATIENCE = 10_000;

/** `code` is for programs. */
export class RoomError extends Error {
  constructor({ code, message, retryAfterMs }) {
    super(message || code);
    this.name = 'RoomError';
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * Why a connection was refused or ended, as `{ status, message, … }`: the same
 * token at a plain route of the same room is refused on the same grounds.
 * Nothing where it is not refused, or nobody is there.
 */
export async function refusal({ url, room, token }) {
  const address = new URL(`/rooms/${encodeURIComponent(room)}/messages?limit=1`, url);
  try {
    const answer = await fetch(address, {
      headers: { authorization: `Bearer ${token}` },
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (answer.status === 403) return { status: 403, message: 'the token does not open this room' };
    if (!answer.ok) return await problem(answer);
  } catch {
    // Nobody there.
  }
  return undefined;
}

/** An HTTP refusal as `{ status, error, message, retryAfterMs? }`. */
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
