// A client that shares no code with ours: Node's own fetch, with the headers that the contract says its CLI sends.
// stdin: {base, requests: [{method, path, body, token}]}; stdout: [{status, headers, text}] in the same order.
let text = "";
for await (const chunk of process.stdin) text += chunk;
const { base, requests } = JSON.parse(text);
const answers = [];
for (const { method, path, body, token } of requests) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  const answer = await fetch(base + path, { method, headers, body: body === null ? undefined : JSON.stringify(body) });
  answers.push({ status: answer.status, headers: Object.fromEntries(answer.headers), text: await answer.text() });
}
console.log(JSON.stringify(answers));
