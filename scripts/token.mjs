// Prints a token for local use, signed with the JWT_SECRET of .dev.vars.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { SignJWT } from "jose";

const usage = `usage: make token [USER_ID=alice] [ROOMS='general team-*'] [TTL=1h] [ROLE=service]

Without ROOMS the token opens the rooms of DEFAULT_ROOMS. ROOMS may also be the
JSON of the claim: ROOMS='{"team-*":["read"]}'. USER_ID must be 1 to
128 characters of A-Z a-z 0-9 . _ : -`;

let values;
try {
  ({ values } = parseArgs({
    options: {
      user: { type: "string", default: "alice" },
      rooms: { type: "string" },
      ttl: { type: "string", default: "1h" },
      role: { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  }));
} catch (error) {
  fail(error.message);
}
if (values.help) {
  console.log(usage);
  process.exit(0);
}
if (!/^[A-Za-z0-9._:-]{1,128}$/.test(values.user)) {
  fail("USER_ID must be 1 to 128 characters of A-Z a-z 0-9 . _ : -");
}

const vars = Object.fromEntries(
  readFileSync(new URL("../.dev.vars", import.meta.url), "utf8")
    .split("\n")
    .map((line) => line.match(/^\s*([A-Z_]+)\s*=\s*"?(.*?)"?\s*$/))
    .filter(Boolean)
    .map(([, name, value]) => [name, value]),
);
if (!vars.JWT_SECRET) fail("JWT_SECRET is not set in .dev.vars");

const claims = {};
if (values.role) claims.role = values.role;
if (values.rooms) {
  try {
    claims.rooms = /^[[{]/.test(values.rooms)
      ? JSON.parse(values.rooms)
      : values.rooms.split(/[\s,]+/).filter(Boolean);
  } catch (error) {
    fail(`ROOMS is not JSON: ${error.message}`);
  }
}
let token = new SignJWT(claims)
  .setProtectedHeader({ alg: "HS256", typ: "JWT" })
  .setSubject(values.user)
  .setIssuedAt();
try {
  token = token.setExpirationTime(values.ttl);
} catch {
  fail("TTL must be a time such as 90s, 10m, 1h or 7d");
}
if (vars.JWT_ISSUER) token.setIssuer(vars.JWT_ISSUER);
if (vars.JWT_AUDIENCE) token.setAudience(vars.JWT_AUDIENCE);
console.log(await token.sign(new TextEncoder().encode(vars.JWT_SECRET)));

function fail(message) {
  console.error(`${message}\n\n${usage}`);
  process.exit(1);
}
