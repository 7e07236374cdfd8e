// The server's API, as the page uses it.
//
//   for await (const event of events("v1/completions", { prompt: "What is" }, key, signal)) ...

/** What was refused or went wrong, in words. `status` is 0 where there was no answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The name of the model that is served. */
export async function modelName(key) {
  const answer = await ask("v1/models", { headers: authorization(key) });
  return (await answer.json()).data[0].id;
}

/** The events of a streamed answer, parsed; throws `ApiError`, or what `signal` was aborted with. */
export async function* events(path, body, key, signal) {
  const answer = await ask(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const data of eventData(answer.body, signal)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(answer.status, event.error.message);
    yield event;
  }
  throw new ApiError(0, "The connection ended before the answer did.");
}

function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    if (/[^\x20-\xff]/.test(options.headers.authorization ?? "")) {
      throw new ApiError(401, "The key has characters that no key has.");
    }
    throw new ApiError(0, "The server cannot be reached. Does it still run?");
  }
  if (answer.ok) return answer;
  const told = (await answer.json().catch(() => ({}))).error?.message ?? answer.statusText;
  const wait = answer.headers.get("retry-after");
  throw new ApiError(answer.status, `${told}${wait ? ` (in ${wait} s)` : ""}`);
}

/** What follows `data: ` in a stream of server-sent events. */
async function* eventData(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError(0, "The connection broke before the answer ended.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
