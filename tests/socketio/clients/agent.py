"""The agent of python-socketio. agents.mjs describes agents.

usage: agent.py sync|async
"""

import asyncio
import json
import sys
import threading

import socketio

lock = threading.Lock()


def report(**fields):
    with lock:
        print(json.dumps(fields), flush=True)


class Patient:
    """Waits longer than a second for the namespaces, because the machine of the tests is busy.

    After that time it connects again, if its session was lost before the answer.
    """

    def connect(self, *args, **options):
        options.setdefault("wait_timeout", 10)
        return super().connect(*args, **options)


class Client(Patient, socketio.Client):
    pass


class AsyncClient(Patient, socketio.AsyncClient):
    pass


class Agent:
    """Runs the operations of one kind of client. `run` starts a function or a coroutine."""

    def __init__(self, kind, run):
        self.kind = kind
        self.run = run
        self.clients = {}

    def handle(self, op, client, **arguments):
        getattr(self, op)(client, **arguments)

    def open(self, client, url, nsps, transports, query, token):
        connection = self.kind(reconnection_delay=0.05, reconnection_delay_max=0.2)
        state = {"connection": connection, "token": token}
        self.clients[client] = state
        for nsp in nsps:
            self.listen(client, connection, nsp)
        if query:
            url += "/?" + "&".join(f"{name}={value}" for name, value in query.items())
        state["connect"] = lambda: connection.connect(
            url,
            auth=lambda: {"token": state["token"]},
            namespaces=nsps,
            transports=transports,
        )
        self.connect(client)

    def listen(self, client, connection, nsp):
        def on_connect():
            report(client=client, nsp=nsp, state="connect")

        def on_disconnect(reason):
            report(client=client, nsp=nsp, state="disconnect", reason=reason)

        def on_connect_error(data):
            details = data if isinstance(data, dict) else {"message": str(data)}
            report(client=client, nsp=nsp, state="error", **details)

        def on_event(event, *args):
            report(client=client, nsp=nsp, event=event, args=args)

        connection.on("connect", on_connect, namespace=nsp)
        connection.on("disconnect", on_disconnect, namespace=nsp)
        connection.on("connect_error", on_connect_error, namespace=nsp)
        connection.on("*", on_event, namespace=nsp)

    def token(self, client, token):
        self.clients[client]["token"] = token

    def connect(self, client):
        self.run(self.clients[client]["connect"])

    def request(self, client, nsp, event, data, id):
        def answered(*answer):
            report(client=client, id=id, answer=answer)

        emit = self.clients[client]["connection"].emit
        self.run(lambda: emit(event, data, namespace=nsp, callback=answered))

    def emit(self, client, nsp, event, data):
        emit = self.clients[client]["connection"].emit
        self.run(lambda: emit(event, data, namespace=nsp))

    def close(self, client):
        self.run(self.clients.pop(client)["connection"].shutdown)


def sync_run(function):
    def call():
        try:
            function()
        except socketio.exceptions.SocketIOError as error:
            print(error, file=sys.stderr)

    threading.Thread(target=call, daemon=True).start()


def async_run(function):
    async def call():
        try:
            await function()
        except socketio.exceptions.SocketIOError as error:
            print(error, file=sys.stderr)

    asyncio.run_coroutine_threadsafe(call(), loop)


if sys.argv[1] == "sync":
    agent = Agent(Client, sync_run)
else:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    agent = Agent(AsyncClient, async_run)
for line in sys.stdin:
    agent.handle(**json.loads(line))
