// What the page asks the server.

const dialog = document.getElementById("key-dialog");
let asking = null;

function headers() {
  const key = sessionStorage.getItem("api-key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function askForKey() {
  asking ??= new Promise((resolve) => {
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        sessionStorage.setItem("api-key", document.getElementById("key").value);
        asking = null;
        resolve();
      },
      { once: true },
    );
  });
  return asking;
}

async function request(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.status === 401) {
    await askForKey();
    return request(path, options);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the server answers ${answer.status}`);
}

/** The cache; see mikv_cpp.serve.picture. */
export async function readCache(columns, text) {
  return (await request(`kv?columns=${columns}&text=${text}`)).json();
}

/** The pieces of an answer, as they come; the last one says why it ended. */
export async function* chat(body, signal) {
  const answer = await request("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (kept + value).split("\n");
    kept = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const said = JSON.parse(line.slice(6));
      if (said.error) throw new Error(said.error.message);
      yield said;
    }
  }
}
