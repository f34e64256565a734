/**
 * Shared state of an on-demand Azurite: the files through which its users and its host process
 * coordinate.
 *
 *   tidemark-server.lock held exclusively by the host for its whole life: two servers on one folder
 *   would destroy it tidemark-users.lock held shared by every process that uses the server; held
 *   exclusively by a host that is ending tidemark-server.json the host's process and port; valid
 *   only while the server lock is held tidemark-server.key the account key that this folder's
 *   server asks for tidemark-server.log the host's error output
 *
 * A server on the loopback interface can be reached by every user of the machine. So each folder
 * has a random account key, in a file that only the folder's owner can read.
 */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { type ErrorCode, systemCode, TidemarkError } from "../engine/index.ts";
import { processStat, readOwn, replacePlain, unlessAbsent } from "../engine/internal.ts";

/** Azurite's own names, so that a plain `azurite -l DIR` can open the folder. */
export const blobDatabaseName = "__azurite_db_blob__.json";
export const extentDatabaseName = "__azurite_db_blob_extent__.json";
export const extentFolderName = "__blobstorage__";

/**
 * The account of every Azurite and its published key, which is no secret. A server that Tidemark
 * starts has this account, so that a plain Azurite finds the data, and a key of its own.
 */
export const developmentAccount = "devstoreaccount1";
export const developmentKey =
  "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/**
 * Exit code of a host that found another host on its folder, or was let go before it served. Not a
 * failure.
 */
export const exitOtherHost = 3;

export interface AzuritePaths {
  readonly serverLock: string;
  readonly usersLock: string;
  readonly state: string;
  readonly key: string;
  readonly log: string;
  readonly blobDatabase: string;
  readonly extentDatabase: string;
  readonly extents: string;
}

export function azuritePaths(dir: string): AzuritePaths {
  return {
    serverLock: join(dir, "tidemark-server.lock"),
    usersLock: join(dir, "tidemark-users.lock"),
    state: join(dir, "tidemark-server.json"),
    key: join(dir, "tidemark-server.key"),
    log: join(dir, "tidemark-server.log"),
    blobDatabase: join(dir, blobDatabaseName),
    extentDatabase: join(dir, extentDatabaseName),
    extents: join(dir, extentFolderName),
  };
}

/** A process, told apart from a later one with the same id. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Start time in the kernel's ticks since boot, or null where there is no /proc. */
  readonly startTime: string | null;
}

export type HostState =
  | ({ readonly state: "starting" } & ProcessIdentity)
  | ({ readonly state: "listening"; readonly port: number } & ProcessIdentity)
  | ({
      readonly state: "failed";
      readonly code: ErrorCode;
      readonly message: string;
      readonly remedy: string;
    } & ProcessIdentity);

/** Replaces the state atomically: a reader never sees a part of it. */
export async function writeHostState(path: string, state: HostState): Promise<void> {
  await replacePlain(path, `${JSON.stringify(state)}\n`);
}

/** The size of an account key of Azure, and of its base64. */
const keyBytes = 64;
const keyPattern = /^[A-Za-z0-9+/]{86}==$/;

/** More than a state file or a key has. */
const ownFileBytesMax = 65_536;

/**
 * The folder's account key, made at its first use. Only the holder of the server lock may call it.
 */
export async function ownKey(path: string): Promise<string> {
  try {
    return await readKey(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
  const key = randomBytes(keyBytes).toString("base64");
  await replacePlain(path, key, { durable: true });
  return key;
}

/**
 * The key of the server on a folder.
 *
 * @throws TidemarkError DAMAGED. Errors of the file system pass through untranslated.
 */
export async function readKey(path: string): Promise<string> {
  const key = (await readOwn(path, ownFileBytesMax)).toString("latin1");
  if (keyPattern.test(key)) return key;
  throw new TidemarkError("DAMAGED", `${path} holds no account key`, {
    remedy: `end the commands that use the folder, then remove the file: rm ${path}`,
  });
}

/** The state written last; undefined when the file is absent or cannot be parsed. */
export async function readHostState(path: string): Promise<HostState | undefined> {
  const text = (await unlessAbsent(readOwn(path, ownFileBytesMax)))?.toString("utf8");
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // A power failure may leave any content. The lock decides whether a host lives; this file only
    // holds its port.
    return undefined;
  }
  return isHostState(value) ? value : undefined;
}

function isHostState(value: unknown): value is HostState {
  if (typeof value !== "object" || value === null || !("pid" in value) || !Number.isSafeInteger(value.pid))
    return false;
  if (
    !("startTime" in value) ||
    !(value.startTime === null || typeof value.startTime === "string") ||
    !("state" in value)
  )
    return false;
  if (value.state === "starting") return true;
  if (value.state === "listening") return "port" in value && Number.isInteger(value.port);
  return value.state === "failed" && "code" in value && "message" in value && "remedy" in value;
}

/**
 * When the process started, in ticks since boot. Undefined when there is no such process, null
 * where there is no /proc.
 */
export async function processStartTime(pid: number): Promise<string | null | undefined> {
  if (process.platform !== "linux") return null;
  const stat = await processStat(pid);
  return stat === undefined ? undefined : String(stat.startTicks);
}
