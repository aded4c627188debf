// Stream a chat completion from Node.js, with nothing but the protos.
//
// Run: stack up --detach; npm install; node stream_chat.mjs --model smollm2-135m "Say hello."
// --address is that of the inference service, --protos the folder `protos` of the repository.
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: "string", default: "smollm2-135m" },
    address: { type: "string", default: "localhost:50051" },
    protos: { type: "string", default: fileURLToPath(new URL("../../../protos", import.meta.url)) },
  },
});
const definition = loadSync("llamastack/v1/inference.proto", {
  includeDirs: [values.protos], keepCase: true, enums: String, longs: Number, oneofs: true, defaults: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).llamastack.v1;
const client = new InferenceService(values.address, grpc.credentials.createInsecure());
const question = { items: [{ text: positionals[0] ?? "Say hello." }] };
const call = client.StreamChatCompletion({
  request: { model_id: values.model, messages: [{ user: { content: question } }], sampling_params: { max_tokens: 60 } },
});
call.on("data", (response) => {
  if (response.event === "progress") process.stdout.write(response.progress.delta.text ?? "");
  if (response.event === "complete") console.log(`\n${response.complete.usage.completion_tokens} tokens`);
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
