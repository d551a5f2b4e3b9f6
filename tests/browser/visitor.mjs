/** Somebody with a browser: what they do on the page, and what they see. */

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];
const PATIENCE = 20_000;

export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: FLAGS });
}

export class Visitor {
  /** What the page complained of. */
  complaints = [];
  /** The frames it sent over WebSockets. */
  sent = [];

  /** A browser of one's own: nothing is shared with other visitors. */
  static async open(browser, url, options = {}) {
    const visitor = new Visitor();
    visitor.context = await browser.newContext({ viewport: { width: 1100, height: 760 }, ...options });
    visitor.context.setDefaultTimeout(PATIENCE);
    visitor.page = await visitor.context.newPage();
    visitor.page.on('pageerror', (error) => visitor.complaints.push(String(error)));
    visitor.page.on('console', (message) => {
      // A server that is down or hangs up on purpose is no fault of the page.
      const expected = /ERR_(CONNECTION|INTERNET|EMPTY_RESPONSE|ABORTED|SOCKET)|WebSocket (connection|is already in CLOSING)/
        .test(message.text());
      if (message.type() === 'error' && !expected) visitor.complaints.push(message.text());
    });
    visitor.page.on('websocket', (socket) => {
      socket.on('framesent', ({ payload }) => visitor.sent.push(String(payload)));
    });
    visitor.url = url;
    return visitor;
  }

  /** Comes in by the form; `transport` is what stands on the switch. With a
   * `cable`, `cut` can cut it. */
  static async join(browser, url, room, name, { transport = 'Native', cable = false, ...options } = {}) {
    const visitor = await Visitor.open(browser, url, options);
    if (cable) await visitor.#layCable();
    await visitor.page.goto(`${url}/?room=${room}`);
    await visitor.page.getByLabel('Your name').fill(name);
    await visitor.page.getByLabel(transport).check();
    await visitor.page.getByRole('button', { name: 'Join the room' }).click();
    await visitor.connection('live');
    return visitor;
  }

  async #layCable() {
    const cables = new Set();
    await this.page.routeWebSocket('**', (socket) => {
      const server = socket.connectToServer();
      const cable = { cut: false };
      cables.add(cable);
      socket.onMessage((frame) => cable.cut || server.send(frame));
      server.onMessage((frame) => cable.cut || socket.send(frame));
    });
    /** The WebSockets there are carry nothing more, and nobody is told. */
    this.cut = () => cables.forEach((cable) => (cable.cut = true));
  }

  /** Waits until the connection is in this state. */
  connection(state, options) {
    return this.page.locator(`#chat[data-connection=${state}]`).waitFor(options);
  }

  async write(text) {
    await this.page.getByLabel('Message', { exact: true }).fill(text);
    await this.page.keyboard.press('Enter');
  }

  async type(text) {
    await this.page.getByLabel('Message', { exact: true }).pressSequentially(text, { delay: 10 });
  }

  click(name) {
    return this.page.getByRole('button', { name }).click();
  }

  message(text) {
    return this.page.locator('.message').filter({ has: this.page.getByText(text, { exact: true }) });
  }

  sees(text) {
    return this.message(text).waitFor();
  }

  /** The mark of an own message: waiting, sent, delivered, read or failed. */
  mark(text, mark) {
    return this.message(text).and(this.page.locator(`[data-mark=${mark}]`)).waitFor();
  }

  member(user, status) {
    return this.page.locator(`.member[data-user="${user}"][data-status=${status}]`).waitFor();
  }

  typing(text) {
    return this.until(() => this.page.locator('#typing').innerText(), (shown) => shown.trim() === text, 'typing');
  }

  /** All that stands in the log, from top to bottom. */
  texts() {
    return this.page.locator('.message .text').allInnerTexts();
  }

  /** Waits until exactly these messages are shown, in this order. */
  reads(texts) {
    return this.until(() => this.texts(), (shown) => JSON.stringify(shown) === JSON.stringify(texts), texts);
  }

  async until(look, isIt, what) {
    let seen;
    for (const end = Date.now() + PATIENCE; Date.now() < end; await this.page.waitForTimeout(50)) {
      seen = await look();
      if (isIt(seen)) return;
    }
    assert.deepEqual(seen, what);
  }

  /** As if another tab came to the front, or this one again. */
  look(state) {
    return this.page.evaluate((visibility) => {
      Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => visibility });
      document.dispatchEvent(new Event('visibilitychange'));
    }, state);
  }

  /** By how many pixels the page or the log is wider than the screen. */
  overflow() {
    return this.page.evaluate(() => {
      const scroller = document.getElementById('scroller');
      return Math.max(
        document.documentElement.scrollWidth - innerWidth,
        scroller.scrollWidth - scroller.clientWidth,
      );
    });
  }

  async leave() {
    await this.context.close();
    assert.deepEqual(this.complaints, [], 'the page complained');
  }
}
