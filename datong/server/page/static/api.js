// The server's API, https://platform.openai.com/docs/api-reference/chat; only what the page needs.

const KEY = "datong.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

// What the server says is wrong. `status` 0: it said nothing.
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", 0);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new ApiError(body.error?.message ?? `${answer.status} ${answer.statusText}`, answer.status);
}

export async function models() {
  return (await (await ask("/v1/models")).json()).data;
}

// The events of a chat, decoded. Throws ApiError; AbortError when `signal` says so.
export async function* chat(body, signal) {
  const stream = { stream: true, stream_options: { include_usage: true } };
  const answer = await ask("/v1/chat/completions", { method: "POST", signal, body: JSON.stringify({ ...body, ...stream }) });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("broken", 0);
      });
      if (done) throw new ApiError("broken", 0);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new ApiError(event.error.message, 500);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
