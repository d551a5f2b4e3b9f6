/** Shows the state of the connection: a word in the header, and a banner below the
 * header if the user should know more or can act. */

import { $ } from './dom.js';

export class Connection {
  #client;
  #ticker;

  constructor(client) {
    this.#client = client;
    $('toggle').onclick = () => {
      const on = ['idle', 'offline', 'stopped'].includes(client.state.name);
      if (on) client.connect();
      else client.disconnect();
    };
    client.on('state', () => this.changed());
    client.on('outbox', () => this.changed());
  }

  changed() {
    clearTimeout(this.#ticker);
    const { state } = this.#client;
    const { word, line, action, act } = this.#describe(state);
    $('chat').dataset.connection = state.name;
    // A screen reader reads each change once, not every second.
    if ($('connection-text').textContent !== word) $('connection-text').textContent = word;
    const on = ['idle', 'offline', 'stopped'].includes(state.name);
    $('toggle-text').textContent = on ? 'Go online' : 'Go offline';
    $('toggle').setAttribute('aria-label', on ? 'Go online' : 'Go offline');
    $('toggle').classList.toggle('primary', on);
    $('toggle').classList.toggle('quiet', !on);
    $('banner').hidden = !line;
    $('banner-text').textContent = line ?? '';
    $('banner-button').textContent = action ?? '';
    $('banner-button').hidden = !action;
    $('banner-button').onclick = act;
  }

  #describe(state) {
    switch (state.name) {
      case 'live':
        return { word: 'Live' };
      case 'waiting': {
        const seconds = Math.max(0, Math.ceil((state.retryAt - Date.now()) / 1_000));
        this.#ticker = setTimeout(() => this.changed(), 250);
        return {
          word: 'Reconnecting',
          line: `Connection lost. Trying again ${seconds ? `in ${seconds} s` : 'now'}.${this.#waitingText()}`,
          action: 'Try now',
          act: () => this.#client.wake(),
        };
      }
      case 'offline':
        return {
          word: 'Offline',
          line: `You are offline. The room keeps the messages that you miss.${this.#waitingText()}`,
        };
      case 'stopped':
        return {
          word: 'Disconnected',
          line: `Disconnected: ${state.reason}.`,
          action: 'Join again',
          act: () => this.#client.connect(),
        };
      default:
        return { word: 'Connecting' };
    }
  }

  #waitingText() {
    const waiting = this.#client.outbox.length;
    return waiting ? ` ${waiting} ${waiting === 1 ? 'message is' : 'messages are'} waiting to be sent.` : '';
  }
}
