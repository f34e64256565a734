/**
 * The control socket of an agent.
 *
 * Invariant: one agent per socket, the one that holds the lock file beside it. The lock ends with
 * its process, so an agent that gets it knows that an existing socket was left by a killed agent,
 * and replaces it.
 */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { rename, rm, stat } from "node:fs/promises";
import { createConnection, type Server } from "node:net";
import { dirname, isAbsolute, join } from "node:path";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { listenPrivately, makeFolder, socketPathFault } from "../../engine/internal.ts";
import { FileLock } from "../../sink/internal.ts";
import { type Environment, vaultOptions } from "../settings.ts";

/**
 * Where the agent of this user listens unless it is told otherwise: in the XDG runtime folder, else
 * in the state folder.
 */
export function controlSocketDefault(environment: Environment): string {
  const runtime = environment["XDG_RUNTIME_DIR"] ?? "";
  if (isAbsolute(runtime)) return join(runtime, "tidemark", "agent.sock");
  const { stateFolder } = vaultOptions({}, environment, new AbortController().signal);
  if (stateFolder !== undefined) return join(stateFolder, "agent.sock");
  throw new TidemarkError("INVALID_ARGUMENT", "the agent's control socket has no place: this user has no home folder", {
    remedy: "set XDG_RUNTIME_DIR, or name the socket with `--socket PATH` or `control.socket`",
  });
}

/** A socket that this process listens on, for its user only. */
export interface ClaimedSocket extends AsyncDisposable {
  readonly path: string;
}

/**
 * Lets `server` listen on `path`. Disposing removes the path; it does not close the server. Errors:
 * WRITER_ACTIVE when another agent is there, INVALID_ARGUMENT, ACCESS_REFUSED.
 */
export async function claimSocket(server: Server, path: string): Promise<ClaimedSocket> {
  const wrong = socketPathFault(path);
  if (wrong !== undefined)
    throw new TidemarkError("INVALID_ARGUMENT", `${path} ${wrong}`, { remedy: "name a shorter path" });
  let lock: FileLock | undefined;
  try {
    await makeFolder(dirname(path));
    lock = await FileLock.tryAcquire(`${path}.lock`, "exclusive");
    if (lock === undefined) throw agentActive(path);
    await refuseOthers(path);
    await takePlace(server, path);
  } catch (error) {
    server.close();
    await lock?.release();
    throw socketError(error, path);
  }
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      await rm(path, { force: true });
      await lock.release();
    },
  };
}

/** Refuses a path that may not be replaced: it is no socket, or a process answers there. */
async function refuseOthers(path: string): Promise<void> {
  const status = await stat(path).catch(undefinedWhenAbsent);
  if (status === undefined) return;
  if (!status.isSocket()) {
    throw new TidemarkError("INVALID_ARGUMENT", `${path} is there and is no socket`, {
      remedy: "name another path for the control socket",
    });
  }
  if (await isLiving(path)) throw agentActive(path);
}

/**
 * The socket is made under a name of its own, for its user only, and takes the place of a leftover in the
 * same step.
 */
async function takePlace(server: Server, path: string): Promise<void> {
  const own = `${path}.${randomBytes(4).toString("hex")}`;
  try {
    const listening = once(server, "listening");
    listenPrivately(server, own);
    await listening;
    await rename(own, path);
  } catch (error) {
    await rm(own, { force: true });
    throw error;
  }
}

/**
 * Whether a process accepts connections on `path`. False for a path that is gone, or that no
 * process listens on.
 */
async function isLiving(path: string): Promise<boolean> {
  const socket = createConnection(path);
  try {
    await once(socket, "connect");
    return true;
  } catch (error) {
    if (["ECONNREFUSED", "ENOENT", "ENOTSOCK"].includes(systemCode(error) ?? "")) return false;
    throw error;
  } finally {
    // The probe ends here; a reset by the other end is no error.
    socket.on("error", () => socket.destroy());
    socket.destroy();
  }
}

function agentActive(path: string): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", `an agent is already running behind ${path}`, {
    remedy:
      "use that one (`tidemark agent status`), stop it (`tidemark agent stop`), or give this one another control.socket",
    detail: { path },
  });
}

function socketError(error: unknown, path: string): unknown {
  if (error instanceof TidemarkError) return error;
  const code = systemCode(error) ?? "";
  const refused = code === "EACCES" || code === "EPERM" || code === "EROFS";
  return new TidemarkError(
    refused ? "ACCESS_REFUSED" : "INVALID_ARGUMENT",
    `the socket ${path} cannot be made (${code})`,
    {
      remedy: "name a path in a folder that this user may write to",
      detail: { path },
      cause: error,
    },
  );
}

function undefinedWhenAbsent(error: unknown): undefined {
  if (systemCode(error) !== "ENOENT") throw error;
  return undefined;
}
