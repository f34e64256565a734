/**
 * Shared on-demand server: one Azurite per folder, started by its first user and ended after its
 * last.
 *
 * Azurite does not notice a second server on its folder, and two servers destroy it. So the host
 * process (azurite-host.ts) holds an exclusive file lock for its whole life, and every user holds a
 * shared lock on another file. The kernel drops both locks when their process dies, so a crash
 * leaves nothing to clean up. A host that holds its lock and does not answer (stopped or stuck) is
 * killed and replaced, after a check that the process is the one that wrote tidemark-server.json.
 *
 * Invariant: when `stop` of the last user, or a failed `start`, has settled, no host that this
 * process started is left on the folder. The caller may remove the folder.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:fs";
import { readdir, readFile, readlink, realpath, rm, stat } from "node:fs/promises";
import http from "node:http";
import { Socket } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { interrupted, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";
import { makeFolder, openPlain, replacePlain } from "../engine/internal.ts";
import {
  type AzuritePaths,
  azuritePaths,
  blobDatabaseName,
  developmentAccount,
  exitOtherHost,
  extentFolderName,
  type HostState,
  processStartTime,
  readHostState,
  readKey,
} from "./azurite-state.ts";
import { FileLock } from "./file-lock.ts";
import { absentAs, folderError } from "./file-system.ts";
import { checkInstalled } from "./optional-package.ts";

/** Options of `Azurite.start`. */
export interface AzuriteOptions {
  readonly signal?: AbortSignal | undefined;
  /** @internal A host that has not answered for this long counts as dead. Default: 10 s. */
  readonly frozenAfterMs?: number | undefined;
}

/** Azurite does not answer while it saves; a big database takes seconds to load. */
const frozenAfterMsDefault = 10_000;
const startMsMax = 60_000;
const stopMsMax = 20_000;
const usersWaitMsMax = 30_000;
const pollMs = 20;
const logBytesMax = 1024 * 1024;
/** More than the host writes before it serves. */
const probeBytes = 128 * 1024;

/**
 * One use of the Azurite on a folder, from `start` to `stop`. Needs the package `azurite`.
 *
 * @example
 * ```ts
 * await using server = await Azurite.start("/srv/azurite");
 * console.log(server.endpoint);
 * ```
 */
export class Azurite implements AsyncDisposable {
  /** The folder, with links resolved. */
  readonly dir: string;
  /** `http://127.0.0.1:PORT/devstoreaccount1`. */
  readonly endpoint: string;
  /** The account key that the server asks for: random, one per folder. */
  readonly key: string;
  /** Process id of the server, which may have been started by another process. */
  readonly pid: number;
  readonly #paths: AzuritePaths;
  readonly #users: FileLock;
  /** A host that this process started: the server, or one that another host was faster than. */
  readonly #child: ChildProcess | undefined;
  readonly #host: HostState;
  #stopped: Promise<void> | undefined;

  private constructor(
    dir: string,
    server: { readonly port: number; readonly key: string },
    host: HostState,
    users: FileLock,
    child: ChildProcess | undefined,
  ) {
    this.dir = dir;
    this.endpoint = `http://127.0.0.1:${String(server.port)}/${developmentAccount}`;
    this.key = server.key;
    this.pid = host.pid;
    this.#paths = azuritePaths(dir);
    this.#users = users;
    this.#child = child;
    this.#host = host;
  }

  /**
   * Uses the Azurite on `dir` and starts one if none runs. Creates the folder when it is absent.
   *
   * @throws TidemarkError INVALID_ARGUMENT: the folder holds other files, or an Azurite that
   * Tidemark did not start uses it; ACCESS_REFUSED: the folder belongs to another user; DAMAGED: its
   * database cannot be read; UNSUPPORTED: the package `azurite` is not installed, or there is no
   * flock; STORE_UNREACHABLE, NO_SPACE, INTERRUPTED.
   */
  static async start(dir: string, options: AzuriteOptions = {}): Promise<Azurite> {
    checkInstalled("an Azurite", ["azurite"]);
    const folder = await prepareFolder(dir);
    const paths = azuritePaths(folder);
    const users = await FileLock.acquire(paths.usersLock, "shared", {
      signal: options.signal,
      waitMsMax: usersWaitMsMax,
    });
    let child: ChildProcess | undefined;
    try {
      const deadlineMs = performance.now() + startMsMax;
      const silence = new Silence(options.frozenAfterMs ?? frozenAfterMsDefault);
      while (performance.now() < deadlineMs) {
        throwIfAborted(options.signal);
        // Checked before the state is read: a host writes why it failed before it ends.
        const ended = child === undefined || hasEnded(child);
        const held = await lockIsHeld(paths.serverLock);
        const written = await readHostState(paths.state);
        const state =
          written?.state === "failed" || (written !== undefined && (await isRunning(written))) ? written : undefined;
        if (child !== undefined && state?.state === "failed" && state.pid === child.pid)
          throw new TidemarkError(state.code, state.message, { remedy: state.remedy });
        if (held) {
          if (state?.state === "listening" && (await answers(state.port, silence.probeMs, options.signal))) {
            if (child !== undefined && child.pid !== state.pid) letGo(child);
            const key = await readKey(paths.key);
            return new Azurite(folder, { port: state.port, key }, state, users, child);
          }
          if (state !== undefined && silence.isOver(state)) await kill(state, folder);
        } else if (ended) {
          if (child !== undefined) refuseFallen(child, folder, paths);
          await refuseForeignAzurite(folder);
          child = await spawnHost(folder, paths);
        }
        await pause(options.signal);
      }
      throw new TidemarkError(
        "STORE_UNREACHABLE",
        `the Azurite on ${folder} did not start within ${String(startMsMax / 1000)} s`,
        {
          remedy: `see ${paths.log}`,
        },
      );
    } catch (error) {
      await users.release();
      if (child !== undefined) await gone(child, paths);
      throw error;
    }
  }

  /** Bytes of the databases: Azurite saves each as a new file beside the old one. */
  async savedBytes(): Promise<number> {
    const { blobDatabase, extentDatabase } = this.#paths;
    const sizes = await Promise.all(
      [blobDatabase, extentDatabase].map(async (path) => await absentAs(0, sizeOf(path))),
    );
    return sizes.reduce((sum, size) => sum + size, 0);
  }

  /**
   * Ends this use. If it was the last one, waits until the server has saved and ended. Idempotent.
   *
   * @throws TidemarkError STORE_UNREACHABLE: the server did not end and was killed; and the error
   * that kept the server from saving.
   */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(): Promise<void> {
    await this.#users.release();
    if (this.#child !== undefined && this.#child.pid !== this.pid) await gone(this.#child, this.#paths);
    else if (this.#child !== undefined) letGo(this.#child);
    const deadlineMs = performance.now() + stopMsMax;
    while (await lockIsHeld(this.#paths.serverLock)) {
      // A host that ended between the two looks at the users lock leaves it free, as other users do.
      if ((await isUsedByOthers(this.#paths.usersLock)) && (await lockIsHeld(this.#paths.serverLock))) return;
      if (performance.now() > deadlineMs && (await isRunning(this.#host))) {
        await kill(this.#host, this.dir);
        throw new TidemarkError(
          "STORE_UNREACHABLE",
          `the Azurite on ${this.dir} did not end and was killed: the last writes may be lost`,
          {
            remedy: "run the command again; it reads what the store holds",
          },
        );
      }
      await sleep(pollMs);
    }
    const last = await readHostState(this.#paths.state);
    if (last?.state === "failed" && last.pid === this.#host.pid)
      throw new TidemarkError(last.code, last.message, { remedy: last.remedy });
  }
}

/**
 * For a host that this process started and that has ended. One that found another host, or was
 * killed, is started again; one that failed throws STORE_UNREACHABLE.
 */
function refuseFallen(child: ChildProcess, dir: string, paths: AzuritePaths): void {
  if (child.exitCode === null || child.exitCode === 0 || child.exitCode === exitOtherHost) return;
  throw new TidemarkError(
    "STORE_UNREACHABLE",
    `the Azurite on ${dir} could not be started (exit code ${String(child.exitCode)})`,
    {
      remedy: `see ${paths.log}`,
    },
  );
}

/** Measures for how long the same host has not answered. */
class Silence {
  /** How long to wait for one answer. */
  readonly probeMs: number;
  readonly #limitMs: number;
  #key = "";
  #sinceMs = 0;

  constructor(limitMs: number) {
    this.probeMs = limitMs / 4;
    this.#limitMs = limitMs;
  }

  /** True once `state` has been asked about, unchanged, for longer than the limit. */
  isOver(state: HostState): boolean {
    const key = JSON.stringify(state);
    if (key !== this.#key) {
      this.#key = key;
      this.#sinceMs = performance.now();
      return false;
    }
    return performance.now() - this.#sinceMs >= (state.state === "starting" ? startMsMax / 2 : this.#limitMs);
  }
}

/**
 * Creates the folder if it is absent. A folder with other files is refused: a wrong path must not
 * fill a home directory with a database.
 */
async function prepareFolder(dir: string): Promise<string> {
  try {
    await makeFolder(dir);
    const folder = await realpath(dir);
    await refuseOthersFolder(folder);
    await refuseUnwritable(folder);
    const names = await readdir(folder);
    const ours =
      names.every((name) => name === "lost+found") ||
      names.some((name) => name === blobDatabaseName || name === extentFolderName || name.startsWith("tidemark-"));
    if (ours) return folder;
  } catch (error) {
    throw folderError(error, dir);
  }
  throw new TidemarkError("INVALID_ARGUMENT", `${dir} holds files that are not an Azurite's data`, {
    remedy: "name an empty or absent folder, or one that an Azurite created",
  });
}

/**
 * Azurite answers 500 for whatever keeps it from writing, and its host cannot write why it failed.
 * So the folder is tried first.
 */
async function refuseUnwritable(folder: string): Promise<void> {
  const probe = join(folder, "tidemark-probe");
  await replacePlain(probe, new Uint8Array(probeBytes));
  await rm(probe, { force: true });
}

/**
 * Refuses the folder of another user, to root too: its owner could place links in it, and the
 * server would leave files that the owner cannot open.
 */
async function refuseOthersFolder(folder: string): Promise<void> {
  const { uid } = await stat(folder);
  const self = process.geteuid?.() ?? uid;
  if (uid === self) return;
  throw new TidemarkError("ACCESS_REFUSED", `${folder} belongs to user ${String(uid)}, not to user ${String(self)}`, {
    remedy: `run the command as its owner: sudo -u '#${String(uid)}' tidemark …`,
    detail: { path: folder },
  });
}

/**
 * Starts the host in a process group of its own, so that ^C in the terminal does not reach it, and
 * without holding this process alive.
 */
async function spawnHost(dir: string, paths: AzuritePaths): Promise<ChildProcess> {
  const log = await openPlain(paths.log, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT);
  try {
    if ((await log.stat()).size > logBytesMax) await log.truncate();
    const child = spawn(process.execPath, [fileURLToPath(import.meta.resolve("#azurite-host")), dir], {
      cwd: dir,
      detached: true,
      stdio: ["pipe", log.fd, log.fd],
    });
    // The pipe breaks when the host dies, and `start` sees that by the lock. A child that cannot be
    // spawned counts as one that has exited.
    child.stdin?.on("error", () => undefined);
    child.on("error", () => undefined);
    child.unref();
    if (child.stdin instanceof Socket) child.stdin.unref();
    return child;
  } finally {
    await log.close();
  }
}

/**
 * Closes the host's standard input: it ends at once if it does not serve yet, otherwise when it has
 * no user.
 */
function letGo(child: ChildProcess): void {
  child.stdin?.destroy();
}

/** Lets go of a host and waits until it has ended, or serves other users. */
async function gone(child: ChildProcess, paths: AzuritePaths): Promise<void> {
  letGo(child);
  for (const deadlineMs = performance.now() + stopMsMax; !hasEnded(child) && performance.now() < deadlineMs; ) {
    const serves = (await readHostState(paths.state))?.pid === child.pid;
    if (serves && (await isUsedByOthers(paths.usersLock))) return;
    await sleep(pollMs);
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.pid === undefined || child.exitCode !== null || child.signalCode !== null;
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path)).size;
}

async function lockIsHeld(path: string): Promise<boolean> {
  const lock = await FileLock.tryAcquire(path, "exclusive");
  await lock?.release();
  return lock === undefined;
}

/**
 * True when other processes use the server. False when none does, or when the host holds the lock
 * exclusively because it is ending.
 */
async function isUsedByOthers(usersLock: string): Promise<boolean> {
  if (!(await lockIsHeld(usersLock))) return false;
  const shared = await FileLock.tryAcquire(usersLock, "shared");
  await shared?.release();
  return shared !== undefined;
}

/** Sends the server a request. Any answer of an Azurite counts, a refusal too. */
function answers(port: number, timeoutMs: number, signal: AbortSignal | undefined): Promise<boolean> {
  return new Promise((resolve) => {
    const request = http.get(
      { host: "127.0.0.1", port, path: `/${developmentAccount}?comp=list`, agent: false, timeout: timeoutMs, signal },
      (response) => {
        response.resume();
        const server = response.headers["server"];
        resolve(typeof server === "string" && server.startsWith("Azurite-Blob/"));
      },
    );
    request.on("timeout", () => request.destroy());
    request.on("error", () => resolve(false));
  });
}

/**
 * True when the process that wrote the state still runs, and its id does not belong to a later
 * process.
 */
async function isRunning(host: HostState): Promise<boolean> {
  const startTime = await processStartTime(host.pid);
  return startTime === host.startTime;
}

/** Kills the host, after a check that its process is the one that wrote the state. */
async function kill(host: HostState, dir: string): Promise<void> {
  if (!(await isRunning(host))) return;
  if (host.startTime === null) {
    throw new TidemarkError(
      "STORE_UNREACHABLE",
      `the Azurite on ${dir} (process ${String(host.pid)}) does not answer`,
      {
        remedy: `end process ${String(host.pid)}, then run the command again`,
      },
    );
  }
  try {
    process.kill(host.pid, "SIGKILL");
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error;
  }
}

/**
 * Refuses a folder that is in use by an Azurite that Tidemark did not start: it takes no lock.
 * Linux only: needs /proc.
 */
async function refuseForeignAzurite(dir: string): Promise<void> {
  if (process.platform !== "linux") return;
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry) || !(await isAzuriteOn(entry, dir))) continue;
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `an Azurite that Tidemark did not start (process ${entry}) uses ${dir}`,
      {
        remedy: "stop it, or use its URL: http://127.0.0.1:10000/devstoreaccount1/CONTAINER",
      },
    );
  }
}

async function isAzuriteOn(pid: string, dir: string): Promise<boolean> {
  try {
    const args = (await readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0");
    // Tidemark's own hosts run `azurite-host.js`, which matches neither name.
    const script = args.slice(0, 3).find((arg) => /(^|\/)azurite(-blob)?$|\/azurite\/dist\/src\/.*main\.js$/.test(arg));
    if (script === undefined) return false;
    const cwd = await readlink(`/proc/${pid}/cwd`);
    const at = args.findIndex((arg) => arg === "-l" || arg === "--location");
    const location =
      at === -1 ? args.find((arg) => arg.startsWith("--location="))?.slice("--location=".length) : args[at + 1];
    return (await realpath(resolve(cwd, location ?? "."))) === dir;
  } catch (error) {
    // Processes end during the scan, and those of other users cannot be read; neither is a server
    // that this user started.
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ESRCH" || code === "EACCES" || code === "EPERM") return false;
    throw error;
  }
}

async function pause(signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(pollMs, undefined, { signal });
  } catch (error) {
    if (signal?.aborted === true) throw interrupted(signal);
    throw error;
  }
}
