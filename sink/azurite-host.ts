/**
 * Host process of an on-demand Azurite: `node azurite-host.js DIR`, started by `Azurite.start`; it
 * ends when its last user has gone.
 *
 *   take the server lock ─► open the databases ─► listen on a free port of 127.0.0.1 ─► write the port to tidemark-server.json
 *   stdin ends (the starter closed it, or died) ─► ten times a second, try the users lock exclusively
 *   obtained: the server has no user ─► close, save, end; both locks go with the process
 *
 * A starter that is killed leaves no server behind, and the server stays as long as another process
 * uses it. A new user that comes while the host is ending waits for the users lock, and thereby for
 * the host's end.
 *
 * Invariant: a host that is let go before it has the server lock touches no file. A second host
 * that was started at the same time may come up after the first server has ended, when its folder
 * is being removed.
 *
 * It shares only the folder with its starter: own process group, output to the log file.
 */
import { readFile, stat } from "node:fs/promises";
import { createRequire, Module } from "node:module";
import { dirname } from "node:path";
import process from "node:process";
import { setImmediate as nextTurn } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { hasCode, systemCode, TidemarkError } from "../engine/index.ts";
import {
  type AzuritePaths,
  azuritePaths,
  developmentAccount,
  exitOtherHost,
  ownKey,
  type ProcessIdentity,
  processStartTime,
  writeHostState,
} from "./azurite-state.ts";
import { FileLock } from "./file-lock.ts";

type Modules = readonly [
  typeof import("azurite/dist/src/blob/BlobConfiguration.js").default,
  typeof import("azurite/dist/src/blob/BlobServer.js").default,
];
type BlobServer = InstanceType<Modules[1]["default"]>;

/**
 * A predecessor that is ending, or a starter that tests the lock, may hold the server lock for a
 * moment.
 */
const serverLockWaitMs = 1000;
const usersPollMs = 100;
/**
 * Longer than the sink keeps idle sockets, so a connection that the server closes is a sign of a
 * failure.
 */
const keepAliveSeconds = 60;
const extentsAtATime = 50;

const exitFailed = 1;

// Node would open its debugger to every user of this machine at that signal.
process.on("SIGUSR1", () => undefined);

// Pieces of bodies lie outside V8's heap. V8 counts them when it decides to collect garbage, but not
// when it decides how much the heap may grow until then. It gave so little that every 12 MiB read cost
// a full collection. Now the heap may become four times as large, as V8 allows to busy programs.
setFlagsFromString("--heap-growing-percent=300");

/** True once this process closes the server on purpose. */
let ending = false;

await main();

async function main(): Promise<void> {
  // Azurite creates its files without a mode: they are for the folder's owner only.
  process.umask(0o077);
  const dir = process.argv[2];
  if (dir === undefined) throw new TidemarkError("INVALID_ARGUMENT", "the folder is missing");
  const paths = azuritePaths(dir);
  const starterGone = new AbortController();
  const stdinEnded = stdinEnd().then(() => starterGone.abort());
  const modules = await loadAzurite();
  // An end of stdin that came during the start is seen in a turn of the event loop.
  await nextTurn();
  const serverLock = await takeServerLock(paths, starterGone.signal);
  if (serverLock === undefined || starterGone.signal.aborted) process.exit(exitOtherHost);
  const self: ProcessIdentity = { pid: process.pid, startTime: (await processStartTime(process.pid)) ?? null };
  // Azurite throws some database failures out of callbacks, where no caller can catch them.
  process.on("uncaughtException", (error) => {
    void fail(paths, self, error);
  });
  try {
    await writeHostState(paths.state, { ...self, state: "starting" });
    const server = await startServer(paths, modules);
    const address = server.httpServer.address();
    if (address === null || typeof address === "string")
      throw new TidemarkError("INTERNAL", "Azurite listens on no port");
    // Azurite closes its server when its garbage collection fails, and the process goes on.
    server.httpServer.once("close", () => {
      if (!ending) void fail(paths, self, new TidemarkError("STORE_UNREACHABLE", "Azurite closed itself"));
    });
    await writeHostState(paths.state, { ...self, state: "listening", port: address.port });
    process.once("SIGTERM", () => void end(server));
    process.once("SIGINT", () => void end(server));
    await stdinEnded;
    await usersGone(paths);
    await end(server);
  } catch (error) {
    await fail(paths, self, error);
  }
}

/** Undefined when another host holds the lock, or when `signal` aborts first. */
async function takeServerLock(paths: AzuritePaths, signal: AbortSignal): Promise<FileLock | undefined> {
  try {
    return await FileLock.acquire(paths.serverLock, "exclusive", { waitMsMax: serverLockWaitMs, signal });
  } catch (error) {
    if (hasCode(error, "STORE_UNREACHABLE", "INTERRUPTED")) return undefined;
    throw error;
  }
}

async function loadAzurite(): Promise<Modules> {
  leaveOutTelemetry();
  return [
    (await import("azurite/dist/src/blob/BlobConfiguration.js")).default,
    (await import("azurite/dist/src/blob/BlobServer.js")).default,
  ];
}

/**
 * Puts an empty module in the place of Azurite's telemetry client. Nothing calls it here, because
 * only Azurite's own program starts telemetry, and its 450 modules are a quarter of the start.
 */
function leaveOutTelemetry(): void {
  const { resolve, cache } = createRequire(createRequire(import.meta.url).resolve("azurite/package.json"));
  const path = resolve("applicationinsights");
  const empty = new Module(path);
  empty.loaded = true;
  cache[path] = empty;
}

async function startServer(paths: AzuritePaths, [configurationModule, serverModule]: Modules): Promise<BlobServer> {
  await refuseEmptyDatabase(paths.blobDatabase);
  await refuseEmptyDatabase(paths.extentDatabase);
  // Azurite takes accounts from the environment. Changed here, after the start of the process, it
  // does not show in /proc.
  process.env["AZURITE_ACCOUNTS"] = `${developmentAccount}:${await ownKey(paths.key)}`;
  const configuration = new configurationModule.default(
    "127.0.0.1",
    0,
    keepAliveSeconds,
    paths.blobDatabase,
    paths.extentDatabase,
    [{ locationId: "Default", locationPath: paths.extents, maxConcurrency: extentsAtATime }],
    false,
    undefined,
    false,
    undefined,
    false,
    true,
    "",
    "",
    "",
    undefined,
    true,
    false,
  );
  const server = new serverModule.default(configuration);
  await server.start();
  return server;
}

/**
 * A power failure may leave an empty database. Azurite treats it as a new one and then collects all
 * data as garbage.
 */
async function refuseEmptyDatabase(path: string): Promise<void> {
  try {
    if ((await stat(path)).size === 0) throw damaged(path, "is empty");
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

function stdinEnd(): Promise<void> {
  return new Promise((resolve) => {
    process.stdin.once("close", resolve).once("end", resolve).once("error", resolve).resume();
  });
}

/**
 * Resolves when this process holds the users lock exclusively: no process uses the server, and none
 * can begin to.
 */
async function usersGone(paths: AzuritePaths): Promise<void> {
  for (;;) {
    if ((await FileLock.tryAcquire(paths.usersLock, "exclusive")) !== undefined) return;
    await new Promise((resolve) => setTimeout(resolve, usersPollMs));
  }
}

async function end(server: BlobServer): Promise<void> {
  if (ending) return;
  ending = true;
  await server.close();
  // `close` skips a save that is in progress. One more save waits for that one and reports a
  // failure.
  await save(server.extentMetadataStore.db);
  await save(server.metadataStore.db);
  process.exit(0);
}

function save(database: BlobServer["metadataStore"]["db"]): Promise<void> {
  return new Promise((resolve, reject) => {
    database.saveDatabase((error) => {
      if (error === undefined || error === null) resolve();
      else reject(error instanceof Error ? error : new Error("the database could not be saved", { cause: error }));
    });
  });
}

/**
 * Writes the reason to the state file and ends without saving: the state in memory cannot be
 * trusted.
 */
async function fail(paths: AzuritePaths, self: ProcessIdentity, error: unknown): Promise<void> {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  const reason = await explain(paths, error);
  try {
    await writeHostState(paths.state, {
      ...self,
      state: "failed",
      code: reason.code,
      message: reason.message,
      remedy: reason.remedy ?? `see ${paths.log}`,
    });
  } finally {
    process.exit(exitFailed);
  }
}

async function explain(paths: AzuritePaths, error: unknown): Promise<TidemarkError> {
  if (error instanceof TidemarkError) return error;
  const code = systemCode(error);
  if (code === "ENOSPC" || code === "EDQUOT")
    return new TidemarkError("NO_SPACE", `no space is left for Azurite's data beside ${paths.blobDatabase}`, {
      remedy: "free some space, then run the command again",
    });
  if (code === "EACCES" || code === "EPERM" || code === "EROFS") {
    return new TidemarkError("ACCESS_REFUSED", `Azurite may not write beside ${paths.blobDatabase}`, {
      remedy: `check the owner of the folder and its files: ls -l ${dirname(paths.blobDatabase)}`,
    });
  }
  for (const path of [paths.blobDatabase, paths.extentDatabase]) {
    try {
      JSON.parse(await readFile(path, "utf8"));
    } catch (cause) {
      if (cause instanceof SyntaxError) return damaged(path, "is not valid JSON");
      // A file that cannot be read explains no more than `error` does.
      if (systemCode(cause) === undefined) throw cause;
    }
  }
  return new TidemarkError(
    "STORE_UNREACHABLE",
    `Azurite failed: ${error instanceof Error ? error.message : String(error)}`,
    {
      remedy: `see ${paths.log}`,
    },
  );
}

function damaged(path: string, fact: string): TidemarkError {
  return new TidemarkError("DAMAGED", `Azurite's database ${path} ${fact}`, {
    remedy: "restore the folder from a copy, or use a new folder and replicate again",
  });
}
