/** A user of the demo page in Chromium. The methods act on the page, or wait until the
 * page shows something. */

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];
/** Timeout of every wait, in milliseconds. */
const TIMEOUT = 20_000;

export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: FLAGS });
}

export class User {
  /** Errors of the page: uncaught exceptions and `console.error`. */
  errors = [];
  /** The frames that the page sent over WebSockets. */
  sent = [];

  /** Opens a new browser context, without loading the page. */
  static async open(browser, url, options = {}) {
    const user = new User();
    user.context = await browser.newContext({ viewport: { width: 1100, height: 760 }, ...options });
    user.context.setDefaultTimeout(TIMEOUT);
    user.page = await user.context.newPage();
    user.page.on('pageerror', (error) => user.errors.push(String(error)));
    user.page.on('console', (message) => {
      // Chromium logs failed connections as errors. The tests cause them on purpose.
      const expected = /ERR_(CONNECTION|INTERNET|EMPTY_RESPONSE|ABORTED|SOCKET)|WebSocket (connection|is already in CLOSING)/
        .test(message.text());
      if (message.type() === 'error' && !expected) user.errors.push(message.text());
    });
    user.page.on('websocket', (socket) => {
      socket.on('framesent', ({ payload }) => user.sent.push(String(payload)));
    });
    user.url = url;
    return user;
  }

  /** Joins a room with the form. `transport` is the label of the radio button. With
   * `intercept`, `dropFrames` can stop the traffic of the open WebSockets. */
  static async join(browser, url, room, name, { transport = 'Native', intercept = false, ...options } = {}) {
    const user = await User.open(browser, url, options);
    if (intercept) await user.#interceptWebSockets();
    await user.page.goto(`${url}/?room=${room}`);
    await user.page.getByLabel('Your name').fill(name);
    await user.page.getByLabel(transport).check();
    await user.page.getByRole('button', { name: 'Join the room' }).click();
    await user.waitForConnection('live');
    return user;
  }

  async #interceptWebSockets() {
    const links = new Set();
    await this.page.routeWebSocket('**', (socket) => {
      const server = socket.connectToServer();
      const link = { dropped: false };
      links.add(link);
      socket.onMessage((frame) => link.dropped || server.send(frame));
      server.onMessage((frame) => link.dropped || socket.send(frame));
    });
    /** Drops all further frames of the open WebSockets, without closing them. */
    this.dropFrames = () => links.forEach((link) => (link.dropped = true));
  }

  /** Waits until the connection is in this state. */
  waitForConnection(state, options) {
    return this.page.locator(`#chat[data-connection=${state}]`).waitFor(options);
  }

  /** Types a message and sends it. */
  async write(text) {
    await this.page.getByLabel('Message', { exact: true }).fill(text);
    await this.page.keyboard.press('Enter');
  }

  /** Types into the message field without sending. */
  async type(text) {
    await this.page.getByLabel('Message', { exact: true }).pressSequentially(text, { delay: 10 });
  }

  click(name) {
    return this.page.getByRole('button', { name }).click();
  }

  message(text) {
    return this.page.locator('.message').filter({ has: this.page.getByText(text, { exact: true }) });
  }

  waitForMessage(text) {
    return this.message(text).waitFor();
  }

  /** Waits for the state of an own message: waiting, sent, delivered, read or failed. */
  waitForMark(text, mark) {
    return this.message(text).and(this.page.locator(`[data-mark=${mark}]`)).waitFor();
  }

  waitForMember(name, status) {
    return this.page.locator(`.member[data-user="${name}"][data-status=${status}]`).waitFor();
  }

  waitForTyping(text) {
    return this.until(() => this.page.locator('#typing').innerText(), (shown) => shown.trim() === text, text);
  }

  /** Returns the texts of all shown messages, from top to bottom. */
  texts() {
    return this.page.locator('.message .text').allInnerTexts();
  }

  /** Waits until exactly these messages are shown, in this order. */
  waitForTexts(texts) {
    return this.until(() => this.texts(), (shown) => JSON.stringify(shown) === JSON.stringify(texts), texts);
  }

  /** Polls `read` until `matches` accepts its result. `expected` is shown on failure. */
  async until(read, matches, expected) {
    let value;
    for (const end = Date.now() + TIMEOUT; Date.now() < end; await this.page.waitForTimeout(50)) {
      value = await read();
      if (matches(value)) return;
    }
    assert.fail(`not ${JSON.stringify(expected)} but ${JSON.stringify(value)} after ${TIMEOUT} ms`);
  }

  /** Simulates a change to another tab (`hidden`) or back (`visible`). */
  setVisibility(state) {
    return this.page.evaluate((visibility) => {
      Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => visibility });
      document.dispatchEvent(new Event('visibilitychange'));
    }, state);
  }

  /** Returns the horizontal overflow of the page or of the message list, in pixels. */
  overflow() {
    return this.page.evaluate(() => {
      const scroller = document.getElementById('scroller');
      return Math.max(
        document.documentElement.scrollWidth - innerWidth,
        scroller.scrollWidth - scroller.clientWidth,
      );
    });
  }

  /** Closes the browser context. Fails if the page has reported errors. */
  async close() {
    await this.context.close();
    assert.deepEqual(this.errors, [], 'the page must report no errors');
  }
}
