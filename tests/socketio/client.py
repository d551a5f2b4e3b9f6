"""A python-socketio client that joins a room, sends and receives.

usage: client.py URL TOKEN
"""

import asyncio
import sys

import socketio


async def main(url: str, token: str) -> None:
    for transports in (["websocket"], ["polling", "websocket"]):
        received = asyncio.get_running_loop().create_future()
        client = socketio.AsyncClient()

        async def on_message(message):
            if not received.done():
                received.set_result(message)

        client.on("newMessage", on_message)
        await client.connect(url, auth={"token": token}, transports=transports)
        joined = await client.call("joinRoom", "python")
        assert joined["roomId"] == "python", joined
        sent = await client.call(
            "sendMessage", {"roomId": "python", "content": "hello from python"}
        )
        assert sent["seq"] >= 1, sent
        message = await asyncio.wait_for(received, 10)
        assert message["senderId"] == "py", message
        print("received", message["content"])
        await client.disconnect()


asyncio.run(main(sys.argv[1], sys.argv[2]))
