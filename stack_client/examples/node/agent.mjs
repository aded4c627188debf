// Run an agent's turn from Node.js: its tool runs in this program, after a person has allowed it.
//
// Run: stack up --detach; npm install; node agent.mjs --model smollm2-135m "How is the weather in Oslo?"
// --address is that of the agents service, --deny refuses the tool.
import { parseArgs } from "node:util";
import { PROTOS, items, running, service, struct, text } from "./mesh.mjs";

const options = { model: { type: "string", default: "smollm2-135m" }, deny: { type: "boolean", default: false },
  address: { type: "string", default: "localhost:50055" }, protos: { type: "string", default: PROTOS } };
const { values, positionals: [question = "How is the weather in Oslo?"] } = parseArgs({ allowPositionals: true, options });
const { client, call } = service("agents", "AgentsService", values.address, values.protos);
const tools = { get_weather: ({ city }) => `sunny in ${city}` };
const input_schema = struct({ type: "object", properties: { city: { type: "string" } }, required: ["city"] });
const get_weather = { name: "get_weather", input_schema, effect: "TOOL_EFFECT_READ", approval: "TOOL_APPROVAL_ALWAYS" };
const verdict = { kind: values.deny ? "TOOL_DECISION_KIND_DENY" : "TOOL_DECISION_KIND_APPROVE", reason: "said in Node" };

// The turn at its end, or where it waits: for a decision, or for a tool of this program.
async function follow(turn_id, resume_after_sequence) {
  for await (const event of client.WatchTurn({ turn_id, resume_after_sequence })) {
    const end = event.turn_awaiting_input ?? event.turn_complete ?? event.turn_failed ?? event.turn_cancelled;
    if (end) return end.turn;
  }
}
await running(client, async () => {
  const { agent_id } = await call("CreateAgent", { agent_config: { model: values.model, client_tools: [get_weather] } });
  const { session_id } = await call("CreateSession", { agent_id });
  const messages = [{ user: { content: items(question) } }];
  let { turn } = await call("CreateTurn", { agent_id, session_id, messages });
  for (turn = await follow(turn.turn_id, 0); turn.pending.length; turn = await follow(turn.turn_id, turn.last_sequence)) {
    const decisions = [], tool_responses = [];
    for (const { kind, call: { call_id, tool_name, arguments_json } } of turn.pending) {
      console.log(kind, tool_name, arguments_json);
      if (kind === "PENDING_KIND_APPROVAL") decisions.push({ call_id, ...verdict });
      else tool_responses.push({ call_id, content: items(tools[tool_name](JSON.parse(arguments_json))) });
    }
    await call("ResumeTurn", { turn_id: turn.turn_id, decisions, tool_responses });
  }
  console.log(turn.status, turn.error?.message ?? text(turn.output_message.content));
});
