/**
 * What the starters of an Azurite and its host process tell each other through the folder that holds the data.
 *
 *   tidemark-server.lock   exclusive for as long as a host process lives: never two servers on one folder, which would destroy it
 *   tidemark-users.lock    shared by every process that uses the server; exclusive by the host once nobody does, until it has ended
 *   tidemark-server.json   who the host is and where it listens; only to be believed while the server lock is held
 *   tidemark-server.log    what the host has to complain about
 */
import { readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type ErrorCode, systemCode } from "../engine/index.ts";
import { processStat } from "../engine/internal.ts";

/** Azurite's own names, so that a plain `azurite -l DIR` can open the folder. */
export const blobDatabaseName = "__azurite_db_blob__.json";
export const extentDatabaseName = "__azurite_db_blob_extent__.json";
export const extentFolderName = "__blobstorage__";

/** The account of every Azurite and its published key: no secret, and the server listens on loopback only. */
export const developmentAccount = "devstoreaccount1";
export const developmentKey = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/** Exit code of a host that found another on its folder: not a failure. */
export const exitOtherHost = 3;

export interface AzuritePaths {
  readonly serverLock: string;
  readonly usersLock: string;
  readonly state: string;
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
    log: join(dir, "tidemark-server.log"),
    blobDatabase: join(dir, blobDatabaseName),
    extentDatabase: join(dir, extentDatabaseName),
    extents: join(dir, extentFolderName),
  };
}

/** A process, told apart from a later one that was given the same id. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Start time in the kernel's own ticks, or null where it cannot be known. */
  readonly startTime: string | null;
}

export type HostState =
  | ({ readonly state: "starting" } & ProcessIdentity)
  | ({ readonly state: "listening"; readonly port: number } & ProcessIdentity)
  | ({ readonly state: "failed"; readonly code: ErrorCode; readonly message: string; readonly remedy: string } & ProcessIdentity);

/** Replaces the state at once, so that a reader never sees half of it. */
export async function writeHostState(path: string, state: HostState): Promise<void> {
  const temporary = `${path}.${String(state.pid)}`;
  await writeFile(temporary, `${JSON.stringify(state)}\n`);
  await rename(temporary, path);
}

/** The state last written; undefined when there is none or it is not one. */
export async function readHostState(path: string): Promise<HostState | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // A machine that lost power may leave anything here. The lock decides who lives; this file only says where.
    return undefined;
  }
  return isHostState(value) ? value : undefined;
}

function isHostState(value: unknown): value is HostState {
  if (typeof value !== "object" || value === null || !("pid" in value) || !Number.isSafeInteger(value.pid)) return false;
  if (!("startTime" in value) || !(value.startTime === null || typeof value.startTime === "string") || !("state" in value)) return false;
  if (value.state === "starting") return true;
  if (value.state === "listening") return "port" in value && Number.isInteger(value.port);
  return value.state === "failed" && "code" in value && "message" in value && "remedy" in value;
}

/** When the process started, in ticks since boot. Undefined when there is no such process, null where there is no /proc. */
export async function processStartTime(pid: number): Promise<string | null | undefined> {
  if (process.platform !== "linux") return null;
  const stat = await processStat(pid);
  return stat === undefined ? undefined : String(stat.startTicks);
}
