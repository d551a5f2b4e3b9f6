// The demo page: what a RoomClient says, as a chat.
import { RoomClient } from "./roomcast.js";

const $ = (id) => document.getElementById(id);
const TYPING_EVERY = 2_000; // repeated while writing; the server forgets after 5 s
const TYPING_PAUSE = 3_000;

const params = new URLSearchParams(location.search);
$("name").value = params.get("name") ?? `guest-${Math.floor(Math.random() * 900 + 100)}`;
$("room").value = params.get("room") ?? "general";

$("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("name").value;
  const room = $("room").value;
  try {
    await token(name); // finds out whether this server hands out tokens
  } catch (error) {
    toast(error.message);
    return;
  }
  history.replaceState(null, "", `?${new URLSearchParams({ room, name })}`);
  $("door").hidden = true;
  $("chat").hidden = false;
  chat(name, room);
});
if (params.has("name") && params.has("room")) $("enter").requestSubmit();
else $("name").select();

/** A token: from the development server, or the one that was pasted. */
async function token(user) {
  if ($("token").value) return $("token").value.trim();
  const answer = await fetch("/dev/token", { method: "POST", body: JSON.stringify({ user }) });
  if (answer.status === 404) {
    $("token-field").hidden = false;
    $("token").focus();
    throw new Error("This server hands out no tokens: paste one.");
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail);
  return body.token;
}

function chat(name, room) {
  document.title = `${room} · roomcast`;
  $("title").textContent = room;
  const client = new RoomClient({ room, token: () => token(name) });
  const members = new Map(); // userId -> { status, delivered, read }
  const rows = new Map(); // messageId -> { element, seq }
  const typing = new Set();

  // -- the connection
  let countdown;
  client.on("state", ({ state, inMs, reason }) => {
    clearInterval(countdown);
    const text = { live: "live", connecting: "connecting…", offline: "offline", closed: `closed: ${reason}` }[state];
    const show = (text) => {
      $("state").textContent = text;
      $("state").dataset.state = state;
    };
    if (state === "reconnecting") {
      const until = Date.now() + inMs;
      const tick = () => show(`reconnecting in ${Math.max(0, Math.ceil((until - Date.now()) / 1000))} s`);
      tick();
      countdown = setInterval(tick, 250);
    } else show(text);
    $("toggle").textContent = state === "offline" || state === "closed" ? "Go online" : "Go offline";
    if (state !== "live") {
      typing.clear();
      showTyping();
    }
  });
  $("toggle").addEventListener("click", () => {
    if ($("toggle").textContent === "Go online") client.connect();
    else client.disconnect();
  });
  client.on("error", ({ message }) => toast(message));
  client.on("reset", () => {
    $("messages").replaceChildren();
    rows.clear();
    note("The room was started over.");
  });
  client.on("gap", ({ from, to }) => note(`Messages ${from} to ${to} are no longer kept.`));

  // -- who is here
  client.on("connected", async () => {
    if ($("status").value !== "online") setStatus();
    const joined = await client.request("joinRoom", room).catch(report);
    if (!joined) return;
    const known = new Map(members); // the answer has no cursors: what was told of them stays
    members.clear();
    for (const { userId, status } of joined.members) {
      members.set(userId, { delivered: 0, read: 0, ...known.get(userId), status });
    }
    showMembers();
  });
  client.on("userJoined", ({ userId }) => {
    if (!members.has(userId)) members.set(userId, { status: "offline", delivered: 0, read: 0 });
    showMembers();
  });
  client.on("userLeft", ({ userId }) => {
    members.delete(userId);
    showMembers();
  });
  client.on("presenceUpdate", ({ userId, status }) => {
    member(userId).status = status;
    showMembers();
  });
  const member = (userId) => {
    if (!members.has(userId)) members.set(userId, { status: "online", delivered: 0, read: 0 });
    return members.get(userId);
  };
  function showMembers() {
    const rank = ["online", "busy", "away", "offline"];
    const sorted = [...members].sort(
      ([a, x], [b, y]) => rank.indexOf(x.status) - rank.indexOf(y.status) || a.localeCompare(b),
    );
    $("members").replaceChildren(
      ...sorted.map(([userId, { status }]) => {
        const item = element("li", "", element("span", userId === name ? `${userId} (you)` : userId), element("small", status));
        item.dataset.status = userId === name ? $("status").value : status;
        item.dataset.user = userId;
        if (userId === name) item.lastChild.textContent = $("status").value;
        return item;
      }),
    );
  }
  const setStatus = () => client.request("setPresence", { status: $("status").value }).then(showMembers, report);
  $("status").addEventListener("change", setStatus);

  // -- messages
  client.on("newMessage", (message) => {
    typing.delete(message.senderId);
    showTyping();
    showMessage(message);
    acknowledge();
  });
  client.on("*", (event, data, meta) => {
    if (meta?.seq === undefined || event === "newMessage") return;
    note(`${event} from ${meta.senderId}: ${JSON.stringify(data)}`);
    acknowledge();
  });

  function showMessage({ messageId, senderId, content, seq, timestamp }) {
    const own = senderId === name;
    let row = rows.get(messageId);
    if (!row) {
      const item = element("li");
      item.className = own ? "message own" : "message";
      const previous = $("messages").lastElementChild;
      if (!own && previous?.dataset.sender !== senderId) {
        const who = element("div", senderId);
        who.className = "who";
        item.append(who);
      }
      const bubble = element("div", typeof content === "string" ? content : JSON.stringify(content));
      bubble.className = "bubble";
      const when = element("div");
      when.className = "when";
      item.append(bubble, when);
      item.dataset.sender = senderId;
      row = { item, own };
      rows.set(messageId, row);
    }
    row.seq = seq;
    row.timestamp = timestamp;
    row.item.classList.toggle("pending", seq === undefined);
    append(row.item);
    showMark(row);
  }

  /** Time, and on one's own messages how far they came. */
  function showMark(row) {
    const time = new Date(row.timestamp).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    let mark = "";
    if (row.own) {
      const others = [...members].filter(([userId]) => userId !== name).map(([, one]) => one);
      const all = (cursor) => others.length > 0 && others.every((one) => one[cursor] >= row.seq);
      mark = row.seq === undefined ? "sending" : all("read") ? "✓✓ read" : all("delivered") ? "✓✓ delivered" : "✓ sent";
    }
    row.item.lastChild.textContent = mark ? `${time} · ${mark}` : time;
  }
  for (const event of ["messageDelivered", "messageRead"]) {
    client.on(event, ({ userId, seq }) => {
      const one = member(userId);
      one.delivered = Math.max(one.delivered, seq);
      if (event === "messageRead") one.read = Math.max(one.read, seq);
      for (const row of rows.values()) if (row.own) showMark(row);
    });
  }

  // One's own cursors: delivered as it comes, read while the page is looked at.
  let acknowledging;
  function acknowledge() {
    clearTimeout(acknowledging);
    acknowledging = setTimeout(() => {
      const event = document.visibilityState === "visible" ? "messageRead" : "messageDelivered";
      if (client.seq > 0) client.request(event, { seq: client.seq }).catch(() => {});
    }, 150);
  }
  document.addEventListener("visibilitychange", acknowledge);
  client.on("connected", acknowledge);

  // -- writing
  let told = 0;
  let pause;
  const tell = (isTyping) => client.request("typingIndicator", { isTyping }).catch(() => {});
  $("text").addEventListener("input", () => {
    clearTimeout(pause);
    if (Date.now() - told > TYPING_EVERY) {
      told = Date.now();
      tell(true);
    }
    pause = setTimeout(stopTyping, TYPING_PAUSE);
  });
  function stopTyping() {
    clearTimeout(pause);
    if (told) tell(false);
    told = 0;
  }
  client.on("userTyping", ({ userId, isTyping }) => {
    if (isTyping) typing.add(userId);
    else typing.delete(userId);
    showTyping();
  });
  function showTyping() {
    const who = [...typing].sort();
    $("typing").textContent =
      who.length === 0 ? "" : who.length === 1 ? `${who[0]} is typing…` : `${who.slice(0, 3).join(", ")} are typing…`;
  }
  $("write").addEventListener("submit", (event) => {
    event.preventDefault();
    const content = $("text").value;
    if (!content.trim()) return;
    $("text").value = "";
    stopTyping();
    const messageId = crypto.randomUUID();
    showMessage({ messageId, senderId: name, content, timestamp: new Date().toISOString() });
    client.send({ content, messageId }).catch((error) => {
      rows.get(messageId)?.item.remove();
      rows.delete(messageId);
      $("text").value ||= content;
      report(error);
    });
  });

  client.connect();
}

const report = (error) => {
  if (error.code !== "offline") toast(error.message);
};

function note(text) {
  const item = element("li", text);
  item.className = "note";
  append(item);
}

/** Puts an item last, where it belongs, and keeps the end in view. */
function append(item) {
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.append(item);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function element(tag, text = "", ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

function toast(text) {
  const item = element("p", text);
  $("toasts").append(item);
  setTimeout(() => item.remove(), 5_000);
}
