/**
 * The process that runs an Azurite of our own: `node azurite-host.js DIR`, started by `Azurite.start` and outliving it only as long as needed.
 *
 *   take the server lock ─► open the databases ─► listen on a free port of 127.0.0.1 ─► say where, in tidemark-server.json
 *   stdin ends (the starter closed it, or died) ─► ten times a second, try the users lock exclusively
 *   obtained: nobody uses the server ─► close, save, end; both locks go with the process
 *
 * So a server is never left behind by a tidemark that was killed, and never taken away from another that still uses it. A user that comes
 * while the host is ending waits for the users lock, and thereby for the host's end.
 *
 * It shares nothing with its starter but the folder: own process group, output to the log file.
 */
import { readFile, stat } from "node:fs/promises";
import process from "node:process";
import BlobConfigurationModule from "azurite/dist/src/blob/BlobConfiguration.js";
import BlobServerModule from "azurite/dist/src/blob/BlobServer.js";
import { systemCode, TidemarkError } from "../engine/index.ts";
import { type AzuritePaths, azuritePaths, exitOtherHost, type ProcessIdentity, processStartTime, writeHostState } from "./azurite-state.ts";
import { FileLock } from "./file-lock.ts";

type BlobServer = InstanceType<typeof BlobServerModule.default>;

/** A predecessor that is ending, or a starter that is looking, may hold the server lock for a moment. */
const serverLockWaitMs = 1000;
const usersPollMs = 100;
/** Longer than our clients keep idle sockets, so that a connection closed by the server means that something happened. */
const keepAliveSeconds = 60;
const extentsAtATime = 50;

const exitFailed = 1;

/** Set once the server closes because we want it to. */
let ending = false;

await main();

async function main(): Promise<void> {
  const dir = process.argv[2];
  if (dir === undefined) throw new TidemarkError("INVALID_ARGUMENT", "the folder is missing");
  const paths = azuritePaths(dir);
  const serverLock = await takeServerLock(paths);
  if (serverLock === undefined) {
    process.exit(exitOtherHost);
  }
  const self: ProcessIdentity = { pid: process.pid, startTime: (await processStartTime(process.pid)) ?? null };
  // Azurite throws some failures of its databases out of callbacks, where no caller can catch them.
  process.on("uncaughtException", (error) => {
    void fail(paths, self, error);
  });
  try {
    await writeHostState(paths.state, { ...self, state: "starting" });
    const server = await startServer(paths);
    const address = server.httpServer.address();
    if (address === null || typeof address === "string") throw new TidemarkError("INTERNAL", "Azurite listens on no port");
    // Azurite closes itself, and nothing else, when its garbage collection fails.
    server.httpServer.once("close", () => {
      if (!ending) void fail(paths, self, new TidemarkError("STORE_UNREACHABLE", "Azurite closed itself"));
    });
    await writeHostState(paths.state, { ...self, state: "listening", port: address.port });
    process.once("SIGTERM", () => void end(server));
    process.once("SIGINT", () => void end(server));
    await stdinEnd();
    await usersGone(paths);
    await end(server);
  } catch (error) {
    await fail(paths, self, error);
  }
}

async function takeServerLock(paths: AzuritePaths): Promise<FileLock | undefined> {
  try {
    return await FileLock.acquire(paths.serverLock, "exclusive", { waitMsMax: serverLockWaitMs });
  } catch (error) {
    if (error instanceof TidemarkError && error.code === "STORE_UNREACHABLE") return undefined;
    throw error;
  }
}

async function startServer(paths: AzuritePaths): Promise<BlobServer> {
  await refuseEmptyDatabase(paths.blobDatabase);
  await refuseEmptyDatabase(paths.extentDatabase);
  // Accounts come from the environment in Azurite; ours is the published one.
  delete process.env["AZURITE_ACCOUNTS"];
  const configuration = new BlobConfigurationModule.default(
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
  const server = new BlobServerModule.default(configuration);
  await server.start();
  return server;
}

/** Azurite takes an empty database, as a power failure leaves it, for a new one, and then collects all data as garbage. */
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

/** Resolves holding the users lock exclusively: from now on nobody can come to use this server. */
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
  // Closing skips a save that is already under way; asking for one more waits for it, and tells when it fails.
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

/** Tells why, and ends without saving: what is in memory cannot be trusted. */
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
      remedy: "make room, then run the command again",
    });
  if (code === "EACCES" || code === "EPERM" || code === "EROFS") {
    return new TidemarkError("ACCESS_REFUSED", `Azurite may not write beside ${paths.blobDatabase}`, {
      remedy: "check who owns the folder and its files",
    });
  }
  for (const path of [paths.blobDatabase, paths.extentDatabase]) {
    try {
      JSON.parse(await readFile(path, "utf8"));
    } catch (cause) {
      if (cause instanceof SyntaxError) return damaged(path, "is not valid JSON");
      // An unreadable file explains nothing more than the error at hand.
      if (systemCode(cause) === undefined) throw cause;
    }
  }
  return new TidemarkError("STORE_UNREACHABLE", `Azurite failed: ${error instanceof Error ? error.message : String(error)}`, {
    remedy: `see ${paths.log}`,
  });
}

function damaged(path: string, fact: string): TidemarkError {
  return new TidemarkError("DAMAGED", `Azurite's database ${path} ${fact}`, {
    remedy: "bring the folder back from a copy; if there is none, use a new folder and replicate again",
  });
}
