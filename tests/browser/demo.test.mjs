// The demo page as people use it: tabs in headless Chromium against
// `wrangler dev` on storage of its own. Waits for conditions, never for time.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { SignJWT } from "jose";
import { chromium } from "playwright-core";

const SECRET = "a secret for the browser test that nobody else has";
const PATIENCE = 30_000;
const project = fileURLToPath(new URL("../..", import.meta.url));

/** `wrangler dev`, which can be killed with all it started, and started again
 *  on the same port and storage. */
class Dev {
  storage = mkdtempSync(join(tmpdir(), "roomcast-browser-"));

  async start() {
    this.port ??= await freePort();
    const vars = { JWT_SECRET: SECRET, DEV_TOKENS: "true", DEFAULT_ROOMS: "*" };
    const args = ["dev", "--port", this.port, "--ip", "127.0.0.1", "--inspector-port", 0];
    args.push("--persist-to", this.storage, "--show-interactive-dev-session=false");
    for (const [name, value] of Object.entries(vars)) args.push("--var", `${name}:${value}`);
    let output = "";
    this.process = spawn(join(project, "node_modules/.bin/wrangler"), args.map(String), {
      cwd: project,
      detached: true, // a process group of its own
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, CI: "1", WRANGLER_SEND_METRICS: "false" },
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.on("data", (data) => (output = (output + data).slice(-20_000)));
    }
    this.ended = new Promise((resolve) => this.process.once("exit", resolve));
    let ended = false;
    this.ended.then(() => (ended = true));
    // The first build takes minutes.
    await until("wrangler dev answers", async () => {
      if (ended) return true;
      return (await fetch(`${this.url}/healthz`, { signal: AbortSignal.timeout(5_000) })).ok;
    }, 600_000);
    if (ended) throw new Error(`wrangler dev ended:\n${output}`);
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** kill -9 for the whole group: wrangler and workerd. */
  async kill() {
    killGroup(this.process);
    await this.ended;
    await until("the port is free", () => fetch(`${this.url}/healthz`).then(() => false, () => true));
  }

  publish(room, event, data) {
    return this.service("POST", "/publish", { room, event, data });
  }

  /** A call of the HTTP API, as a service. */
  async service(method, path, body) {
    const token = await sign("backend", { role: "service", rooms: { "*": ["read", "write", "admin"] } });
    const answer = await fetch(this.url + path, {
      method,
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: body && JSON.stringify(body),
    });
    const text = await answer.text();
    assert.equal(answer.status, 200, text);
    return JSON.parse(text);
  }
}

function sign(user, claims = {}) {
  return new SignJWT(claims)
    .setProtectedHeader({ alg: "HS256" })
    .setSubject(user)
    .setExpirationTime("5m")
    .sign(new TextEncoder().encode(SECRET));
}

function killGroup(child) {
  try {
    if (child?.pid) process.kill(-child.pid, "SIGKILL");
  } catch {
    // Gone already.
  }
}

async function until(what, condition, patience = PATIENCE) {
  const deadline = Date.now() + patience;
  for (;;) {
    if (await Promise.resolve().then(condition).catch(() => false)) return;
    if (Date.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject).listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

const dev = new Dev();
let browser;
process.once("exit", () => {
  killGroup(dev.process);
  rmSync(dev.storage, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));

before(async () => {
  await dev.start();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
});

after(async () => {
  await browser?.close();
  killGroup(dev.process);
  await dev.ended;
});

/** A browser of its own for `name`, in `room`. Faults in the page are collected. */
async function tab(name, room, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 700 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(error.message));
  page.on("console", (line) => {
    if (/Content Security Policy|Refused to/.test(line.text())) page.faults.push(line.text());
  });
  await page.goto(`${dev.url}/?${new URLSearchParams({ room, name })}`);
  await connection(page, "live");
  return page;
}

async function done(...pages) {
  for (const page of pages) {
    assert.deepEqual(page.faults, []);
    await page.context().close();
  }
}

const connection = (page, state) => page.locator(`#chat[data-connection="${state}"]`).waitFor();
const field = (page) => page.getByLabel("Message", { exact: true });
const say = async (page, text) => {
  await field(page).fill(text);
  await field(page).press("Enter");
};
const texts = (page) => page.locator("#log .message .text").allTextContents();
const member = (page, user, status) =>
  page.locator(`#members li[data-user="${user}"][data-status="${status}"]`).waitFor();
/** The state of the newest of one's own messages: waiting, sent, delivered, read. */
const marked = (page, mark) => until(`the message is ${mark}`, async () =>
  (await page.locator("#log .message.own").last().getAttribute("data-mark")) === mark);
const visibility = (page, state) => page.evaluate((value) => {
  Object.defineProperty(document, "visibilityState", { get: () => value, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}, state);

async function shows(page, expected) {
  const same = async () => JSON.stringify(await texts(page)) === JSON.stringify(expected);
  await until("the messages are there", same).catch(async () => assert.deepEqual(await texts(page), expected));
}

test("the form asks for a name and a room, and says what is wrong", async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${dev.url}/?room=door`);
  assert.equal(await page.getByLabel("Room").inputValue(), "door");
  await page.getByLabel("Your name").fill("no spaces please");
  await page.getByLabel("Your name").press("Enter");
  await page.locator('#name[aria-invalid="true"]').waitFor();
  await page.getByLabel("Your name").fill("dora");
  await page.getByRole("button", { name: "Join the room" }).click();
  await connection(page, "live");
  await member(page, "dora", "online");
  await context.close();
});

test("without development tokens a token can be pasted", async () => {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.route("**/dev/token", (route) => route.fulfill({ status: 404, json: { code: "notFound" } }));
  await page.goto(`${dev.url}/?room=paste&name=ignored`);
  await page.getByLabel("Token").fill("nonsense");
  await page.getByRole("button", { name: "Join the room" }).click();
  await page.locator('#token[aria-invalid="true"]').waitFor();
  await page.getByLabel("Token").fill(await sign("paula"));
  await page.getByRole("button", { name: "Join the room" }).click();
  await connection(page, "live");
  await member(page, "paula", "online");
  await context.close();
});

test("two tabs talk and see each other's presence and typing", async () => {
  const alice = await tab("alice", "talk");
  const bob = await tab("bob", "talk");
  await member(alice, "bob", "online");
  await member(bob, "alice", "online");

  await field(alice).pressSequentially("hel");
  await bob.getByText("alice is typing").waitFor();
  await say(alice, "hello <b>bob</b> 👋");
  await shows(bob, ["hello <b>bob</b> 👋"]);
  await until("nobody is typing", async () => (await bob.locator("#typing").textContent()) === "");
  await say(bob, "hello alice");
  await shows(alice, ["hello <b>bob</b> 👋", "hello alice"]);

  // A pause ends it too.
  await field(alice).pressSequentially("well");
  await bob.getByText("alice is typing").waitFor();
  await until("nobody is typing", async () => (await bob.locator("#typing").textContent()) === "");

  await bob.getByLabel("Your status").selectOption("busy");
  await member(alice, "bob", "busy");
  await bob.getByLabel("Your status").selectOption("away");
  await member(alice, "bob", "away");
  await done(bob);
  await member(alice, "bob", "offline");
  await done(alice);
});

test("a message is sent, then delivered, then read", async () => {
  const alice = await tab("alice", "marks");
  await say(alice, "to nobody yet");
  await marked(alice, "sent");
  const bob = await tab("bob", "marks");
  await member(alice, "bob", "online");
  await visibility(bob, "hidden");
  await say(alice, "look");
  await shows(bob, ["to nobody yet", "look"]);
  await marked(alice, "delivered");
  assert.match(await bob.title(), /^\(1\)/);
  await visibility(bob, "visible");
  await marked(alice, "read");
  assert.doesNotMatch(await bob.title(), /^\(/);
  await done(alice, bob);
});

test("who was offline gets what was said and published meanwhile, in order", async () => {
  const alice = await tab("alice", "away");
  const bob = await tab("bob", "away");
  await say(alice, "1");
  await shows(bob, ["1"]);
  await bob.getByRole("button", { name: "Go offline" }).first().click();
  await connection(bob, "offline");
  await member(alice, "bob", "offline");
  await say(alice, "2");
  await shows(alice, ["1", "2"]);
  await marked(alice, "sent");
  const published = await dev.publish("away", "newMessage", { content: "3" });
  assert.deepEqual([published.seq, published.online, published.queued], [3, 1, 1]);
  await say(alice, "4");
  await shows(alice, ["1", "2", "3", "4"]);
  await dev.publish("away", "invoicePaid", { number: 7 });
  await alice.getByText("invoicePaid").waitFor();

  // What is written while offline waits, and goes out with the connection.
  for (const text of ["5", "6", "7"]) await say(bob, text);
  assert.deepEqual(await texts(bob), ["1", "5", "6", "7"]);
  await bob.getByRole("button", { name: "Go online" }).first().click();
  await shows(bob, ["1", "2", "3", "4", "5", "6", "7"]);
  await shows(alice, ["1", "2", "3", "4", "5", "6", "7"]);
  await bob.getByText("invoicePaid").waitFor();
  await marked(bob, "read");

  // After a reload it is all there again.
  await bob.reload();
  await shows(bob, ["1", "2", "3", "4", "5", "6", "7"]);
  await done(alice, bob);
});

test("after kill -9 of the server the page comes back by itself and has everything", async () => {
  const alice = await tab("alice", "crash");
  const bob = await tab("bob", "crash");
  await member(alice, "bob", "online");
  for (const text of ["1", "2", "3"]) await say(alice, text);
  await shows(bob, ["1", "2", "3"]);
  await until("all is acknowledged", async () => (await alice.locator("#log .pending").count()) === 0);
  await dev.kill();
  await connection(alice, "waiting");
  await say(alice, "4, into the dark");
  assert.equal(await alice.locator("#log .pending").count(), 1);
  await dev.start();
  await connection(alice, "live");
  await connection(bob, "live");
  const all = ["1", "2", "3", "4, into the dark"];
  await shows(alice, all);
  await shows(bob, all);
  await until("all is acknowledged", async () => (await alice.locator("#log .pending").count()) === 0);
  // Nothing is there twice, for somebody new to the page either.
  await bob.reload();
  await shows(bob, all);
  await done(alice, bob);
});

test("a deleted room starts over; who was kicked stays out until asked to come back", async () => {
  const alice = await tab("alice", "gone");
  await say(alice, "before");
  await shows(alice, ["before"]);
  await marked(alice, "sent");
  await dev.service("DELETE", "/rooms/gone");
  await alice.getByText("The room has started over").waitFor();
  await connection(alice, "live");
  await shows(alice, []);
  await say(alice, "after");
  await marked(alice, "sent");

  await dev.service("DELETE", "/rooms/gone/connections?userId=alice");
  await connection(alice, "stopped");
  await say(alice, "kept for later");
  await marked(alice, "waiting");
  await alice.getByRole("button", { name: "Join again" }).click();
  await connection(alice, "live");
  await marked(alice, "sent");
  await shows(alice, ["after", "kept for later"]);
  await done(alice);
});

for (const width of [360, 320]) {
  test(`a page fits a phone ${width} px wide`, async () => {
    const page = await tab("someone-with-quite-a-long-name", `a-room-with-quite-a-long-name-${width}`, {
      viewport: { width, height: 640 },
      isMobile: true,
      hasTouch: true,
    });
    const fits = async () => {
      const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.deepEqual([content, window], [width, width], "no sideways scrolling");
    };
    await say(page, `${"long ".repeat(60)} ${"x".repeat(300)}`);
    await until("the message is there", async () => (await texts(page)).length === 1);
    await fits();
    await page.getByRole("button", { name: /^People/ }).click();
    await page.getByLabel("Your status").selectOption("busy");
    await member(page, "someone-with-quite-a-long-name", "busy");
    await fits();
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Go offline" }).first().click();
    await connection(page, "offline");
    await fits();
    await done(page);
  });
}
