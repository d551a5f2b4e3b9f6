// The demo page as people use it: two tabs in headless Chromium, against
// `wrangler dev` on storage of its own.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { SignJWT } from "jose";
import { chromium } from "playwright-core";

const SECRET = "a secret for the browser test that nobody else has";
const PATIENCE = 30_000;
const project = new URL("../..", import.meta.url).pathname;

/** `wrangler dev`, which can be killed with all it started, and started again. */
class Dev {
  async start() {
    this.port ??= await freePort();
    this.storage ??= await mkdtemp(join(tmpdir(), "roomcast-browser-"));
    const vars = { JWT_SECRET: SECRET, DEV_TOKENS: "true", DEFAULT_ROOMS: "*" };
    const args = ["dev", "--port", this.port, "--ip", "127.0.0.1", "--inspector-port", await freePort()];
    args.push("--persist-to", this.storage, "--show-interactive-dev-session=false");
    for (const [name, value] of Object.entries(vars)) args.push("--var", `${name}:${value}`);
    this.output = "";
    this.process = spawn(join(project, "node_modules/.bin/wrangler"), args.map(String), {
      cwd: project,
      detached: true, // a process group of its own, so that all of it can be killed
      env: { ...process.env, CI: "1", WRANGLER_SEND_METRICS: "false" },
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.on("data", (data) => (this.output += data));
    }
    const ended = new Promise((_, reject) =>
      this.process.once("exit", (code) => reject(new Error(`wrangler ended (${code}):\n${this.output}`))),
    );
    ended.catch(() => {});
    // The first build takes minutes.
    await Promise.race([ended, until(async () => (await fetch(`${this.url}/healthz`)).ok, 600_000)]);
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** kill -9 of everything. */
  async kill() {
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    process.kill(-this.process.pid, "SIGKILL");
    await ended;
    await until(() => fetch(this.url).then(() => false, () => true));
  }

  async publish(room, event, data) {
    const token = await new SignJWT({ role: "service" })
      .setProtectedHeader({ alg: "HS256" })
      .setSubject("backend")
      .setExpirationTime("5m")
      .sign(new TextEncoder().encode(SECRET));
    const answer = await fetch(`${this.url}/publish`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}` },
      body: JSON.stringify({ room, event, data }),
    });
    assert.equal(answer.status, 200, await answer.text());
  }
}

async function until(condition, patience = PATIENCE) {
  const deadline = Date.now() + patience;
  for (;;) {
    if (await Promise.resolve(condition()).catch(() => false)) return;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

const dev = new Dev();
let browser;

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
  await dev.kill().catch(() => {});
  await rm(dev.storage, { recursive: true, force: true });
});

/** A tab of its own, as another person's browser; fails the test on any error in the page. */
async function tab(name, room, viewport = { width: 1100, height: 700 }) {
  const context = await browser.newContext({ viewport });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  page.on("console", (line) => {
    if (/Content Security Policy|Refused to/.test(line.text())) page.errors.push(line.text());
  });
  await page.goto(`${dev.url}/?room=${room}&name=${name}`);
  await page.locator('#state[data-state="live"]').waitFor();
  return page;
}

const say = async (page, text) => {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
};
const bubbles = (page) => page.locator("#messages .bubble").allTextContents();
const member = (page, user, status) =>
  page.locator(`#members li[data-user="${user}"][data-status="${status}"]`).waitFor();
const shows = async (page, expected) => {
  await until(async () => JSON.stringify(await bubbles(page)) === JSON.stringify(expected)).catch(async () => {
    assert.deepEqual(await bubbles(page), expected);
  });
};

test("two tabs talk and see presence, typing, delivered and read marks", async () => {
  const alice = await tab("alice", "talk");
  const bob = await tab("bob", "talk");
  await member(alice, "bob", "online");
  await member(bob, "alice", "online");

  await alice.getByLabel("Message", { exact: true }).pressSequentially("hel");
  await bob.getByText("alice is typing…").waitFor();
  await say(alice, "hello <b>bob</b> 👋");
  await shows(bob, ["hello <b>bob</b> 👋"]);
  await until(async () => (await bob.locator("#typing").textContent()) === "");
  await alice.getByText("✓✓ read").waitFor();

  await bob.getByLabel("Your status").selectOption("busy");
  await member(alice, "bob", "busy");
  await bob.getByLabel("Your status").selectOption("away");
  await member(alice, "bob", "away");
  await bob.close();
  await member(alice, "bob", "offline");
  assert.deepEqual([...alice.errors, ...bob.errors], []);
  await alice.context().close();
});

test("a message is delivered before it is read", async () => {
  const alice = await tab("alice", "marks");
  const bob = await tab("bob", "marks");
  await member(alice, "bob", "online");
  await bob.evaluate(() => Object.defineProperty(document, "visibilityState", { get: () => "hidden", configurable: true }));
  await say(alice, "look");
  await alice.getByText("✓✓ delivered").waitFor();
  await bob.evaluate(() => {
    Object.defineProperty(document, "visibilityState", { get: () => "visible", configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await alice.getByText("✓✓ read").waitFor();
  await alice.context().close();
  await bob.context().close();
});

test("who was offline gets messages and publications in order when it is back", async () => {
  const alice = await tab("alice", "away");
  const bob = await tab("bob", "away");
  await say(alice, "1");
  await shows(bob, ["1"]);
  await bob.getByRole("button", { name: "Go offline" }).click();
  await bob.locator('#state[data-state="offline"]').waitFor();
  await say(alice, "2");
  await shows(alice, ["1", "2"]);
  await dev.publish("away", "newMessage", { content: "3" });
  await say(alice, "4");
  await shows(alice, ["1", "2", "3", "4"]);
  // What is written while offline waits, and goes out with the reconnect.
  await say(bob, "5");
  await bob.getByRole("button", { name: "Go online" }).click();
  await shows(alice, ["1", "2", "3", "4", "5"]);
  await shows(bob, ["1", "2", "3", "4", "5"]);
  // A new tab of the same user has it all too.
  const again = await tab("bob", "away");
  await shows(again, ["1", "2", "3", "4", "5"]);
  for (const page of [alice, bob, again]) await page.context().close();
});

test("a page fits a phone", async () => {
  const page = await tab("someone-with-quite-a-long-name", "a-room-with-quite-a-long-name", { width: 320, height: 640 });
  await say(page, `${"long ".repeat(80)} ${"x".repeat(300)}`);
  await until(async () => (await bubbles(page)).length === 1);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
  assert.equal(wide, false, "no sideways scrolling");
  await page.context().close();
});

test("after kill -9 of the server the page comes back by itself and everything acknowledged is there", async () => {
  const alice = await tab("alice", "crash");
  for (const text of ["1", "2", "3"]) await say(alice, text);
  await until(async () => (await alice.locator("#messages .pending").count()) === 0);
  await dev.kill();
  await alice.locator('#state[data-state="reconnecting"], #state[data-state="connecting"]').first().waitFor();
  await say(alice, "4, into the dark");
  await dev.start();
  await alice.locator('#state[data-state="live"]').waitFor();
  await shows(alice, ["1", "2", "3", "4, into the dark"]);
  const bob = await tab("bob", "crash");
  await shows(bob, ["1", "2", "3", "4, into the dark"]);
});
