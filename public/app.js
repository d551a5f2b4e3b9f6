/** The demo page: the form to join a room, and the room. */

import { nativeTransport } from './lib/native.js';
import { Members } from './members.js';
import { newId, RoomClient } from './roomcast.js';
import { devToken, forget, isName, isRoom, outboxStore, readToken, remember, remembered } from './session.js';
import { setUpComposer } from './ui/composer.js';
import { Connection } from './ui/connection.js';
import { $, toast } from './ui/dom.js';
import { People, setUpPanel } from './ui/people.js';
import { Timeline } from './ui/timeline.js';

const HISTORY = 50;

/** The page loads the Socket.IO library only if the user selects this transport. */
const TRANSPORTS = {
  native: async () => nativeTransport,
  socketio: async () => (await import('./lib/socketio.js')).socketioTransport(),
};

// ---- the form

function setUpForm() {
  const { name, room, transport } = remembered();
  $('name').value = name;
  $('room').value = room || 'lobby';
  $('join-form').elements.transport.value = transport;
  $('join-form').onsubmit = (event) => {
    event.preventDefault();
    join();
  };
  if (isName(name) && isRoom(room)) join();
  else $(name ? 'room' : 'name').focus();
}

async function join() {
  const identity = {
    name: $('name').value.trim(),
    room: $('room').value.trim(),
    transport: $('join-form').elements.transport.value,
  };
  const pasted = $('token-field').hidden ? null : $('token').value.trim();
  if (pasted !== null) identity.name = readToken(pasted) ?? '';
  const valid = [
    setFieldError('name', pasted === null && !isName(identity.name) && (identity.name ? 'Use at most 255 visible characters' : 'Enter a name')),
    setFieldError('room', !isRoom(identity.room) && (identity.room ? 'Use letters without accents, digits and . _ : - @' : 'Enter a room')),
    setFieldError('token', pasted !== null && !identity.name && 'This is not a token'),
  ].every(Boolean);
  if (!valid) return $('join-form').querySelector('[aria-invalid=true]').focus();
  $('join-button').disabled = true;
  $('join-error').textContent = '';
  try {
    const first = pasted ?? (await devToken(identity));
    const transport = await TRANSPORTS[identity.transport]();
    enter(identity, transport, pasted ? async () => pasted : tokens(identity, first));
  } catch (error) {
    if (error.missing) {
      $('token-field').hidden = false;
      $('token').focus();
    } else if (error.field) {
      setFieldError(error.field, error.message);
    } else {
      $('join-error').textContent = `Could not join: ${error.message}.`;
    }
  } finally {
    $('join-button').disabled = false;
  }
}

/** Returns a function that returns `first` at its first call and a new token at each
 * later call. */
function tokens(identity, first) {
  return async () => {
    const token = first ?? (await devToken(identity));
    first = null;
    return token;
  };
}

/** Shows or clears the error of a field. Returns `true` if there is no error. */
function setFieldError(field, text) {
  $(`${field}-error`).textContent = text || '';
  $(field).setAttribute('aria-invalid', Boolean(text));
  return !text;
}

// ---- the room

function enter(identity, transport, getToken) {
  const { name, room } = identity;
  remember(identity);
  $('join').hidden = true;
  $('chat').hidden = false;
  $('transport-name').textContent = `· ${{ native: 'native', socketio: 'Socket.IO' }[identity.transport]}`;
  $('room-name').textContent = room;
  $('second-tab').href = `/?room=${encodeURIComponent(room)}`;

  const client = new RoomClient({ room, getToken, transport, history: HISTORY, store: outboxStore(identity) });
  const members = new Members(name);
  const people = new People(members);
  const timeline = new Timeline({ self: name, members, onRead: (seq) => client.read(seq) });
  const titled = (unread) => (document.title = `${unread ? `(${unread}) ` : ''}${room} · roomcast`);
  timeline.onUnread = titled;
  titled(0);

  const cursorsMoved = () => {
    people.changed();
    timeline.receipts();
  };
  client.on('state', (state) => {
    // A screen reader must not read the whole replay aloud.
    if (state.name === 'live') {
      $('scroller').setAttribute('aria-busy', 'true');
      if (state.missed) timeline.divide('While you were away');
    } else {
      members.stopTyping();
      members.presence({ userId: name, status: 'offline' });
      people.changed();
    }
  });
  client.on('ready', (joined) => {
    members.replace(joined);
    cursorsMoved();
    $('scroller').setAttribute('aria-busy', 'false');
    $('earlier').hidden = (timeline.oldest ?? 1) <= 1;
  });
  client.on('reset', () => {
    members.forget();
    timeline.clear();
    timeline.notice({ text: 'The room was deleted and is empty again.' });
  });
  client.on('newMessage', (message) => {
    members.setTyping(message.senderId, false);
    people.changed();
    timeline.message(message);
  });
  client.on('custom', (event) => timeline.notice(describe(event)));
  client.on('gap', ({ from, to }) => {
    const which = from === to ? `Event ${from} has` : `Events ${from} to ${to} have`;
    timeline.notice({ text: `${which} expired and cannot be shown.`, kind: 'gap' });
  });
  client.on('messageDelivered', ({ userId, seq }) => {
    members.delivered(userId, seq);
    cursorsMoved();
  });
  client.on('messageRead', ({ userId, seq }) => {
    members.read(userId, seq);
    cursorsMoved();
  });
  client.on('presenceUpdate', (presence) => {
    members.presence(presence);
    people.changed();
  });
  client.on('userTyping', ({ userId, isTyping }) => {
    members.setTyping(userId, isTyping);
    people.changed();
  });
  client.on('userJoined', ({ userId }) => {
    members.joined(userId);
    cursorsMoved();
  });
  client.on('userLeft', ({ userId }) => {
    members.left(userId);
    cursorsMoved();
  });
  client.on('error', ({ message }) => toast(message));
  client.on('outbox', (outbox) => outbox.forEach((item) => timeline.pending(item)));
  client.outbox.forEach((item) => timeline.pending(item));

  setUpPanel();
  setUpComposer({
    onTyping: (isTyping) => client.typing(isTyping),
    onSend: (content) => {
      const messageId = newId();
      client.send(content, { messageId }).catch((error) => {
        if (!timeline.failed(messageId, error.message)) $('text').value ||= content;
        toast(`Not sent: ${error.message}.`);
      });
    },
  });
  $('status').onchange = () => {
    const status = $('status').value;
    client.setStatus(status).then(
      () => {
        members.presence({ userId: name, status });
        people.changed();
      },
      (error) => toast(`Status not changed: ${error.message}.`),
    );
  };
  $('earlier').onclick = () => showEarlier(client, timeline);
  $('leave').onclick = async () => {
    await client.leave();
    forget();
    location.reload();
  };

  document.addEventListener('visibilitychange', () => {
    if (document.visibilityState !== 'visible') return client.typing(false);
    timeline.look();
    client.wake();
  });
  addEventListener('online', () => client.wake());
  addEventListener('offline', () => client.wake());

  new Connection(client);
  client.connect();
  $('text').focus();
}

async function showEarlier(client, timeline) {
  $('earlier').disabled = true;
  try {
    const { events, more } = await client.before(timeline.oldest, HISTORY);
    timeline.earlier(events.map((event) => (event.event === 'newMessage' ? event.data : describe(event))));
    $('earlier').hidden = events.length === 0 || timeline.oldest <= 1 || more === false;
  } catch (error) {
    toast(`Earlier messages could not be loaded: ${error.message}.`);
  } finally {
    $('earlier').disabled = false;
  }
}

/** Returns a custom event as text. */
function describe({ event, data, meta }) {
  const text = typeof data === 'string' ? data : JSON.stringify(data);
  const { senderId, seq, timestamp } = meta ?? {};
  return { label: event, text: text.slice(0, 500), senderId, seq, timestamp };
}

setUpForm();
