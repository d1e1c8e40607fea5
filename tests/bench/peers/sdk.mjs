// The official SDK for Node, as its README uses it. Usage: sdk.mjs BASE_URL; the answer's text goes to stdout.

import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ apiKey: "bench", baseURL: process.argv[2] });
const stream = client.messages.stream({
  model: "claude-sonnet-5-5",
  max_tokens: 8192,
  messages: [{ role: "user", content: "hi" }],
});
stream.on("text", (text) => process.stdout.write(text));
await stream.finalMessage();
