/**
 * Requests to the agent, and its stream of server-sent events.
 *
 * The stream is read with `fetch` rather than `EventSource`, because only that sends the token in a
 * header. A stream that ends, or is silent for 10 s, is opened again, a little later each time.
 */
const silenceMsMax = 10_000;
const tokenKey = "tidemark-token";

export interface ApiError {
  readonly code: string;
  readonly message: string;
  readonly remedy: string;
}

/** The error that the agent answered, or that the browser found. */
export class RequestFailed extends Error {
  readonly error: ApiError;

  constructor(error: ApiError) {
    super(error.message);
    this.error = error;
  }
}

/** Keeps the token until the tab is closed. */
export function keepToken(token: string): void {
  sessionStorage.setItem(tokenKey, token);
}

function headers(): Record<string, string> {
  const token = sessionStorage.getItem(tokenKey);
  return token === null ? {} : { Authorization: `Bearer ${token}` };
}

/** A GET, or a POST of `fields`. Throws `RequestFailed`. */
export async function ask<Answer>(path: string, fields?: object): Promise<Answer> {
  let response: Response;
  try {
    response = await fetch(path, {
      cache: "no-store",
      ...(fields === undefined
        ? { headers: headers() }
        : {
            method: "POST",
            headers: { ...headers(), "Content-Type": "application/json" },
            body: JSON.stringify(fields),
          }),
    });
  } catch (error) {
    throw unreachable(error);
  }
  const answer = (await response.json()) as Answer & ApiError;
  if (!response.ok) throw new RequestFailed(answer);
  return answer;
}

function unreachable(error: unknown): RequestFailed {
  return new RequestFailed({
    code: "AGENT_UNREACHABLE",
    message: `the agent does not answer (${error instanceof Error ? error.message : String(error)})`,
    remedy: "look whether the agent runs",
  });
}

export interface LiveListener {
  readonly onEvent: (event: string, data: unknown) => void;
  /** The stream has ended, and is opened again. */
  readonly onLost: (error: ApiError) => void;
}

/** Follows `/v1/live` until the page is closed. */
export async function follow({ onEvent, onLost }: LiveListener): Promise<never> {
  for (let failures = 0; ; ) {
    const silence = new AbortController();
    try {
      const response = await fetch("/v1/live", { headers: headers(), signal: silence.signal, cache: "no-store" });
      if (!response.ok || response.body === null) throw new RequestFailed((await response.json()) as ApiError);
      for await (const [event, data] of events(response.body, silence)) {
        failures = 0;
        onEvent(event, JSON.parse(data));
      }
      throw new Error("it has ended the stream");
    } catch (error) {
      onLost((error instanceof RequestFailed ? error : unreachable(error)).error);
    } finally {
      silence.abort();
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** failures, 10_000)));
  }
}

async function* events(
  body: ReadableStream<Uint8Array>,
  silence: AbortController,
): AsyncGenerator<readonly [event: string, data: string]> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => silence.abort(), silenceMsMax);
    const { done, value } = await reader.read();
    clearTimeout(timer);
    if (done) return;
    const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const match = /^event: (.+)\ndata: (.*)$/.exec(block);
      if (match !== null) yield [match[1] ?? "", match[2] ?? ""];
    }
  }
}
