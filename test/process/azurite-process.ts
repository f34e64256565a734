/**
 * An Azurite that another process runs: a process on a folder and a port, which may be killed and
 * comes back on both as it was when it last saved, up to five seconds earlier. And a look at the
 * servers that Tidemark starts by itself.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { expect, onTestFinished } from "vitest";
import { azuritePaths, developmentAccount } from "../../sink/azurite-state.ts";
import { FileLock } from "../../sink/file-lock.ts";
import { unlessGone } from "../temporary-folder.ts";

const main = join(dirname(createRequire(import.meta.url).resolve("azurite/dist/src/main.js")), "blob", "main.js");

/** How long a server of ours may take to save and end when no process uses it any more. */
const serverEndMsMax = 20_000;

export class AzuriteProcess {
  readonly #location: string;
  #accounts: string | undefined;
  #child: ChildProcess;
  port = 0;

  private constructor(location: string, accounts: string | undefined, child: ChildProcess) {
    this.#location = location;
    this.#accounts = accounts;
    this.#child = child;
  }

  /** Starts one on a free port. `accounts`: as AZURITE_ACCOUNTS. The caller kills it. */
  static async start(location: string, accounts?: string): Promise<AzuriteProcess> {
    const azurite = new AzuriteProcess(location, accounts, launch(location, 0, accounts));
    azurite.port = await listening(azurite.#child);
    return azurite;
  }

  /** The same, killed when the test ends. */
  static async forTest(location: string, accounts?: string): Promise<AzuriteProcess> {
    const azurite = await AzuriteProcess.start(location, accounts);
    onTestFinished(async () => await azurite.kill());
    return azurite;
  }

  /** Its container `vault`, asked through `port`. */
  vault(port: number = this.port): string {
    return `http://127.0.0.1:${port}/${developmentAccount}/vault`;
  }

  async kill(): Promise<void> {
    const child = this.#child;
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  }

  /** Lets it save and end. */
  async stop(): Promise<void> {
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGTERM");
    await exited;
  }

  /** Starts it again, on the same port and folder, with the same accounts if no others are named. */
  async restart(accounts: string | undefined = this.#accounts): Promise<void> {
    this.#accounts = accounts;
    this.#child = launch(this.#location, this.port, accounts);
    await listening(this.#child);
  }
}

function launch(location: string, port: number, accounts: string | undefined): ChildProcess {
  // The SDK asks for a newer version of the service than Azurite knows; Tidemark does not, but a
  // test may.
  const flags = [
    "--silent",
    "--disableTelemetry",
    "--skipApiVersionCheck",
    "--location",
    location,
    "--blobPort",
    String(port),
  ];
  const env = accounts === undefined ? process.env : { ...process.env, AZURITE_ACCOUNTS: accounts };
  return spawn(process.execPath, [main, ...flags], { env, stdio: ["ignore", "pipe", "inherit"] });
}

/** Resolves with its port once it listens. */
async function listening(child: ChildProcess): Promise<number> {
  if (child.stdout === null) throw new Error("Azurite has no output");
  for await (const line of createInterface(child.stdout)) {
    const port = /listens on http:\S+:(\d+)/.exec(line)?.[1];
    if (port === undefined) continue;
    child.stdout.resume();
    return Number(port);
  }
  throw new Error("Azurite ended before it listened");
}

/** Whether the database that an Azurite saved on `location` contains the identity of a vault. */
export function hasSavedVault(location: string): boolean {
  return unlessGone(() => readFileSync(join(location, "__azurite_db_blob__.json"), "utf8"), "").includes("vault.json");
}

/** The processes that serve `dir`: those that name it and listen on a port. */
export function serversOn(dir: string): readonly number[] {
  const pids = processesNaming(dir);
  if (pids.length === 0) return [];
  const listeningSockets = socketsThatListen();
  return pids.filter((pid) => {
    const descriptors = unlessGone(() => readdirSync(`/proc/${pid}/fd`), []);
    return descriptors.some((name) =>
      listeningSockets.has(unlessGone(() => readlinkSync(`/proc/${pid}/fd/${name}`), "")),
    );
  });
}

/** The processes of this machine that have `dir`, or something in it, among their arguments. */
export function processesNaming(dir: string): readonly number[] {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => {
    const words = unlessGone(() => readFileSync(`/proc/${pid}/cmdline`, "utf8"), "").split("\0");
    return words.some((word) => word === dir || word.startsWith(`${dir}/`));
  });
}

/**
 * Resolves once the server of our own on `dir` has ended, and every host that another one was
 * faster than. Fails when one of them does not end.
 */
export async function serverGone(dir: string): Promise<void> {
  await (await FileLock.acquire(azuritePaths(dir).serverLock, "exclusive", { waitMsMax: serverEndMsMax })).release();
  await expect.poll(() => processesNaming(dir), { timeout: serverEndMsMax }).toEqual([]);
}

/** The links of sockets in the state LISTEN (0A in proc_net_tcp(5)). */
function socketsThatListen(): ReadonlySet<string> {
  const rows = ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((path) =>
    unlessGone(() => readFileSync(path, "utf8"), "").split("\n"),
  );
  const fields = rows.map((row) => row.trim().split(/\s+/));
  return new Set(fields.filter(([, , , state]) => state === "0A").map((field) => `socket:[${field[9] ?? ""}]`));
}
