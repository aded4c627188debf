// What programs in Node.js need to call the mesh: the protos, and a few helpers around them.
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

export const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));

// A service of llamastack.v1: `call` for one answer, `client` for streams.
export function service(file, name, address, protos = PROTOS) {
  const definition = loadSync(`llamastack/v1/${file}.proto`, {
    includeDirs: [protos], keepCase: true, enums: String, longs: Number, oneofs: true, defaults: true,
  });
  const Service = grpc.loadPackageDefinition(definition).llamastack.v1[name];
  const client = new Service(address, grpc.credentials.createInsecure());
  return { client, call: (method, request) => promisify(client[method].bind(client))(request) };
}

// google.protobuf.Struct of plain JSON.
export const struct = (json) => ({ fields: Object.fromEntries(Object.entries(json).map(([k, v]) => [k, value(v)])) });
const value = (v) => {
  if (v === null) return { null_value: "NULL_VALUE" };
  if (Array.isArray(v)) return { list_value: { values: v.map(value) } };
  return { string: { string_value: v }, number: { number_value: v }, boolean: { bool_value: v } }[typeof v]
    ?? { struct_value: struct(v) };
};

export const items = (text) => ({ items: [{ text }] });
export const text = (content) => content.items.map((item) => item.text).join("");

// Do work, say what failed, and close the client.
export async function running(client, work) {
  try {
    await work();
  } catch (error) {
    console.error(`${grpc.status[error.code] ?? error.name}: ${error.details ?? error.message}`);
    process.exitCode = 1;
  } finally {
    client.close();
  }
}
