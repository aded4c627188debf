"""The same turn in LangGraph and the OpenAI Agents SDK; runs in an environment of its own and prints JSON."""

import asyncio
import json
import os
import sys
import tempfile
import time

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
os.environ.setdefault("OPENAI_API_KEY", "none")


def langgraph(count):
    import sqlite3

    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage, ToolCall
    from langchain_core.tools import tool
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    @tool
    def get_weather(city: str) -> str:
        """The weather."""
        return "sunny"

    def answers():
        while True:
            call = ToolCall(name="get_weather", args={"city": "Oslo"}, id="call_1")
            yield AIMessage(content="", tool_calls=[call])
            yield AIMessage(content="It is sunny in Oslo.")

    model = GenericFakeChatModel(messages=answers())
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([get_weather]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "model")
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(f"{folder}/g.db", check_same_thread=False)
        app = graph.compile(checkpointer=SqliteSaver(connection))

        def turn(number):
            config = {"configurable": {"thread_id": str(number)}}
            done = app.invoke({"messages": [("user", "How is the weather in Oslo?")]}, config)
            assert done["messages"][-1].content == "It is sunny in Oslo."

        for number in range(10):
            turn(f"warm{number}")
        cpu = time.process_time()
        for number in range(count):
            turn(number)
        cpu = time.process_time() - cpu
        connection.close()
    return cpu / count * 1000


def openai_agents(count):
    from agents import Agent, ModelResponse, Runner, SQLiteSession, Usage, function_tool
    from agents.models.interface import Model
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    @function_tool
    def get_weather(city: str) -> str:
        """The weather."""
        return "sunny"

    class Fake(Model):
        async def get_response(self, system_instructions, input, *args, **kwargs):
            called = isinstance(input, list) and input[-1].get("type") == "function_call_output"
            if called:
                text = ResponseOutputText(text="It is sunny in Oslo.", type="output_text", annotations=[])
                item = ResponseOutputMessage(
                    id="m", content=[text], role="assistant", status="completed", type="message"
                )
            else:
                item = ResponseFunctionToolCall(
                    arguments='{"city": "Oslo"}', call_id="call_1", name="get_weather", type="function_call"
                )
            return ModelResponse(output=[item], usage=Usage(), response_id=None)

        def stream_response(self, *args, **kwargs):
            raise NotImplementedError

    agent = Agent(name="a", instructions="Be short.", model=Fake(), tools=[get_weather])

    async def run():
        with tempfile.TemporaryDirectory() as folder:

            async def turn(number):
                session = SQLiteSession(str(number), f"{folder}/s.db")
                done = await Runner.run(agent, "How is the weather in Oslo?", session=session)
                assert done.final_output == "It is sunny in Oslo."
                session.close()

            for number in range(10):
                await turn(f"warm{number}")
            cpu = time.process_time()
            for number in range(count):
                await turn(number)
            return time.process_time() - cpu

    return asyncio.run(run()) / count * 1000


if __name__ == "__main__":
    turns = int(sys.argv[1])
    figures = {"LangGraph, SqliteSaver": langgraph(turns), "OpenAI Agents SDK, SQLiteSession": openai_agents(turns)}
    print(json.dumps(figures))
