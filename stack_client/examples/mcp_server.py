"""An agent with the tools of an MCP server, which this program starts on a free port of this machine.

The stack reaches servers on loopback and private addresses only if its operator says so, in `stack.yaml`:
`tools: {egress_allow: [127.0.0.1]}`. Needs the packages of `llama-stack-mesh[server]`.
Run: `stack up --detach --config stack.yaml`, then
`python stack_client/examples/mcp_server.py --model smollm2-135m`
Small models rarely call tools by themselves; a larger one will.
"""

import argparse
import socket
import threading

import uvicorn
from mcp.server import MCPServer

from stack_client import MCP, Agent, print_events

server = MCPServer("shop", log_level="ERROR")


@server.tool()
def order_status(order_id: str) -> str:
    """Where an order is."""
    return f"order {order_id} has left the warehouse"


def main(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error"))
        threading.Thread(target=serving.run, args=([listening],), daemon=True).start()
        shop = MCP(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp")
        print_events(Agent(model, tools=[shop]).stream("Where is order A17?"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    main(parser.parse_args().model)
