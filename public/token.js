// Where the page gets its tokens: from POST /dev/token of a development
// server, or from the person who pasted one.

/** No token service here: a token has to be pasted. */
export class NoDevTokens extends Error {}

let pasted = null;

export function paste(token) {
  const { sub, exp } = claims(token);
  if (!sub) throw new Error("That is not a token: it names no user.");
  if (exp * 1000 <= Date.now()) throw new Error("That token has expired.");
  pasted = token;
  return sub;
}

/** A fresh token for `user`, or the pasted one while it lasts. */
export async function tokenFor(user) {
  if (pasted) {
    if (claims(pasted).exp * 1000 > Date.now()) return pasted;
    throw Object.assign(new Error("The token has expired. Paste a new one."), { fatal: true });
  }
  const answer = await fetch("/dev/token", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user }),
    signal: AbortSignal.timeout(10_000),
  });
  if (answer.status === 404 || answer.status === 405) throw new NoDevTokens();
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const error = new Error(body.detail || body.title || `No token: the server answered ${answer.status}.`);
    error.fatal = [400, 401, 403].includes(answer.status) || body.code === "misconfigured";
    throw error;
  }
  return body.token;
}

function claims(token) {
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(part));
  } catch {
    throw new Error("That is not a token: it should look like eyJ….eyJ….…");
  }
}
