// Reporter of node:test: writes each test's name and what went wrong, or an empty text, as a line of JSON.
import { appendFileSync } from "node:fs";

export default async function* report(source) {
  for await (const event of source) {
    if (event.type !== "test:pass" && event.type !== "test:fail") continue;
    if (event.data.details?.type === "suite" || event.data.name.endsWith(".mjs")) continue;
    const error = event.data.details?.error;
    const problem = event.type === "test:fail" ? String(error?.cause?.stack ?? error?.cause ?? error) : "";
    appendFileSync(process.env.REPORT, JSON.stringify([event.data.name, problem]) + "\n");
    yield "";
  }
}
