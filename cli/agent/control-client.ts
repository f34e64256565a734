/**
 * Client of the control socket: sends one request, and gives its answer or throws the error that
 * the agent reports.
 */
import { request as httpRequest, type IncomingMessage } from "node:http";
import { type ErrorCode, type ErrorDetail, interrupted, systemCode, TidemarkError } from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";

export interface ControlRequest {
  readonly method: "GET" | "POST" | "PUT";
  readonly path: string;
  readonly fields?: object | undefined;
  readonly signal: AbortSignal;
}

/** The status of a thousand disks has about a mebibyte. */
const answerBytesMax = 64 * 1024 * 1024;

/** An agent answers at once with what it knows itself. */
const statusPath = "/v1/status";
const silenceMsMax = 10_000;

/**
 * Asks the agent behind `socket` and gives its JSON. Waits without a limit for all but the status: what
 * the agent has to ask its vaults for takes as long as their stores do. Errors: AGENT_UNREACHABLE,
 * ACCESS_REFUSED, INTERRUPTED, and the error that the agent reports.
 */
export async function askAgent(socket: string, { method, path, fields, signal }: ControlRequest): Promise<unknown> {
  const body = method === "GET" ? undefined : JSON.stringify(fields ?? {});
  const headers =
    body === undefined ? {} : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) };
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const timeout = path === statusPath ? silenceMsMax : undefined;
      const request = httpRequest(
        { socketPath: socket, method, path, headers, signal, timeout, agent: false },
        resolve,
      );
      request.on("timeout", () => request.destroy(stuckAgent(socket)));
      request.on("error", reject);
      request.end(body);
    });
    const answer = await readAnswer(response, socket);
    if (response.statusCode === 200) return answer;
    throw errorOf(answer, response.statusCode ?? 0, socket);
  } catch (error) {
    throw translated(error, socket, signal);
  }
}

async function readAnswer(response: IncomingMessage, socket: string): Promise<unknown> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of response as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > answerBytesMax) throw noAgent(socket, "it answers without an end");
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString("utf8"));
  } catch (error) {
    if (error instanceof SyntaxError) throw noAgent(socket, "the program that answers there is no agent", error);
    throw error;
  }
}

/**
 * The error that the agent reports. Its code is taken as it is: a newer agent may have codes that
 * we do not know.
 */
function errorOf(answer: unknown, status: number, socket: string): TidemarkError {
  const field = (name: string): unknown =>
    typeof answer === "object" && answer !== null ? Reflect.get(answer, name) : undefined;
  const [code, message, remedy, detail] = [field("code"), field("message"), field("remedy"), field("detail")];
  if (typeof code !== "string" || typeof message !== "string" || typeof remedy !== "string")
    return noAgent(socket, `the program that answers there is no agent (status ${status})`);
  return new TidemarkError(code as ErrorCode, message, {
    remedy,
    ...(typeof detail === "object" && detail !== null ? { detail: detail as ErrorDetail } : {}),
  });
}

function translated(error: unknown, socket: string, signal: AbortSignal): unknown {
  if (error instanceof TidemarkError) return error;
  if (signal.aborted) return interrupted(signal);
  switch (systemCode(error)) {
    case "ENOENT":
    case "ECONNREFUSED":
    case "ENOTSOCK":
    case "ENOTDIR":
      return noAgent(socket, "no agent is running there", error);
    case "EACCES":
    case "EPERM":
      return new TidemarkError("ACCESS_REFUSED", `the agent's socket ${socket} is not open to this user`, {
        remedy: "run the command as the agent's user",
        cause: error,
      });
    default:
      return noAgent(socket, `the agent ended before it answered (${systemCode(error) ?? "connection lost"})`, error);
  }
}

function stuckAgent(socket: string): TidemarkError {
  const message = `${socket}: the process that listens there has not answered for ${String(silenceMsMax / 1000)} s`;
  return new TidemarkError("AGENT_UNREACHABLE", message, {
    remedy: `end the process that \`fuser ${shellWord(socket)}\` shows, then start the agent with \`tidemark agent --config FILE\``,
    detail: { socket },
  });
}

function noAgent(socket: string, why: string, cause?: unknown): TidemarkError {
  return new TidemarkError("AGENT_UNREACHABLE", `${socket}: ${why}`, {
    remedy: "start it with `tidemark agent --config FILE`, or name its socket with --socket",
    detail: { socket },
    cause,
  });
}
