// The conversation.

import { chat } from "./server.js";

const byId = (id) => document.getElementById(id);
const messages = byId("messages");
const welcome = byId("welcome");
const question = byId("question");

const EXAMPLES = ["What is a KV cache?", "Write a short story about a lighthouse.", "List ten rivers of Europe and the sea each one reaches."];
const ENDS = { length: "(cut short: an answer’s limit, or the end of the context)" };

let turns = [];
let running = null; // what stops the answer that is being made

function add(kind, text) {
  const line = document.createElement("div");
  line.className = kind;
  line.textContent = text;
  messages.append(line);
  messages.scrollTop = messages.scrollHeight;
  return line;
}

function busy(controller) {
  running = controller;
  byId("stop").hidden = !controller;
  byId("send").disabled = Boolean(controller);
}

function conversation() {
  const system = byId("system").value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...turns];
}

async function receive(line, controller) {
  let finish = null;
  let usage = null;
  const body = {
    messages: conversation(),
    temperature: Number(byId("temperature").value),
    max_tokens: Math.max(1, Math.round(Number(byId("most").value)) || 1),
  };
  const near = () => messages.scrollHeight - messages.scrollTop - messages.clientHeight < 60;
  for await (const said of chat(body, controller.signal)) {
    usage = said.usage ?? usage;
    const choice = said.choices[0];
    const follow = near();
    line.textContent += choice?.delta.content ?? "";
    finish = choice?.finish_reason ?? finish;
    if (follow) messages.scrollTop = messages.scrollHeight;
  }
  return { finish, usage };
}

async function ask(text, onChange) {
  welcome.remove();
  turns.push({ role: "user", content: text });
  add("message user", text);
  const line = add("message assistant", "");
  const controller = new AbortController();
  busy(controller);
  onChange();
  try {
    const { finish, usage } = await receive(line, controller);
    const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
    if (ENDS[finish]) add("note", ENDS[finish]);
    if (usage) add("note", `read ${usage.prompt_tokens - cached} tokens, had ${cached} in the cache, wrote ${usage.completion_tokens}`);
  } catch (error) {
    if (!line.isConnected) return; // a new conversation has begun
    if (controller.signal.aborted) add("note", "(stopped)");
    else add("message wrong", error.message);
  }
  if (line.textContent) turns.push({ role: "assistant", content: line.textContent });
  else {
    turns.pop(); // no answer: the question may be asked again
    line.remove();
  }
  busy(null);
  onChange();
}

function clear() {
  running?.abort();
  busy(null);
  turns = [];
  messages.replaceChildren(welcome);
  question.focus();
}

/** Wire the chat up; onChange is called when an answer begins or ends. */
export function startChat(onChange) {
  const send = () => {
    const text = question.value.trim();
    if (!text || running) return;
    question.value = "";
    ask(text, onChange);
  };
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", clear);
  for (const example of EXAMPLES) {
    const button = document.createElement("button");
    button.className = "plain";
    button.type = "button";
    button.textContent = example;
    button.addEventListener("click", () => running || ask(example, onChange));
    byId("examples").append(button);
  }
}

export const isAnswering = () => Boolean(running);
