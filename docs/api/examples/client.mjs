// A client of fluxd with Node's standard library: open a tunnel, look at it, hear what happens, close it.
import http from "node:http";
import { once } from "node:events";
import readline from "node:readline";

const env = process.env;
const runtime = env.XDG_RUNTIME_DIR || `/run/user/${process.getuid()}`;
const socketPath = env.FLUXD_SOCKET || `${runtime}/fluxd/fluxd.sock`;

// The answer, still to be read. A refusal is application/problem+json with code, message and hint.
async function ask(method, path, body) {
  const headers = { Host: "localhost", "Flux-Api-Version": "1", "Content-Type": "application/json" };
  const request = http.request({ socketPath, method, path, headers });
  request.end(body && JSON.stringify(body));
  const [answer] = await once(request, "response");
  if (answer.statusCode >= 400) {
    const problem = await json(answer);
    console.error(`${problem.code}: ${problem.message}\n${problem.hint ?? ""}`);
    process.exit(1);
  }
  return answer;
}

async function json(answer) {
  const parts = [];
  for await (const part of answer) parts.push(part);
  return JSON.parse(Buffer.concat(parts));
}

const plane = { api_base: env.FLUX_API_BASE, token: env.FLUX_API_TOKEN };
const ssh = {
  host: env.FLUX_DB_TUNNEL_SSH_HOST, user: env.FLUX_DB_TUNNEL_SSH_USER, port: Number(env.FLUX_DB_TUNNEL_SSH_PORT),
  identity_file: env.FLUX_DB_TUNNEL_IDENTITY_FILE, known_hosts: env.FLUX_DB_TUNNEL_KNOWN_HOSTS,
};
const { tunnel } = await json(await ask("POST", "/v1/tunnels", { hash: process.argv[2], plane, ssh }));
console.log(`${tunnel.id} is open`);
console.log((await json(await ask("GET", `/v1/tunnels/${tunnel.id}`))).tunnel.port);
// One JSON object a line, first a snapshot; the stream goes on until somebody hangs up.
const events = await ask("GET", `/v1/events?tunnel=${tunnel.id}`);
for await (const line of readline.createInterface({ input: events })) {
  console.log(JSON.parse(line).name);
  break;
}
events.destroy();
await json(await ask("DELETE", `/v1/tunnels/${tunnel.id}`));
console.log(`${tunnel.id} is closed`);
