import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, statSync } from "node:fs";
import { chown, mkdir, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { TidemarkError } from "../../engine/errors.ts";
import { AzureSink } from "../../sink/azure.ts";
import { Azurite } from "../../sink/azurite.ts";
import {
  azuritePaths,
  developmentAccount,
  developmentKey,
  exitOtherHost,
  processStartTime,
} from "../../sink/azurite-state.ts";
import { FileLock } from "../../sink/file-lock.ts";
import { deepTest } from "../deep-test.ts";
import { createFolder, processesIn, removeFolder } from "../temporary-folder.ts";

let folder: string;
let dir: string;
const children = new Set<ChildProcess>();

beforeEach(() => {
  folder = createFolder("azurite");
  dir = join(folder, "data");
});

afterEach(async () => {
  for (const child of children) {
    child.kill("SIGKILL");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }
  children.clear();
  await removeFolder(folder);
});

/** Resolves when no server holds the folder. */
async function serverGone(): Promise<void> {
  await (await FileLock.acquire(azuritePaths(dir).serverLock, "exclusive", { waitMsMax: 10_000 })).release();
}

/**
 * Another process that starts the Azurite on `dir` and keeps using it; resolves to the server's id.
 */
async function startElsewhere(): Promise<{ readonly child: ChildProcess; readonly serverPid: number }> {
  const built = new URL("../../dist/sink/index.js", import.meta.url).href;
  const script = `
    import { Azurite } from ${JSON.stringify(built)};
    const server = await Azurite.start(${JSON.stringify(dir)});
    console.log(server.pid);
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.add(child);
  const [line] = (await once(createInterface(child.stdout), "line")) as [string];
  return { child, serverPid: Number(line) };
}

async function killed(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  child.kill(signal);
  await once(child, "exit");
  children.delete(child);
}

function sinkOn(server: Azurite): AzureSink {
  return AzureSink.open(`${server.endpoint}/vault`, { kind: "key", account: developmentAccount, key: server.key });
}

async function failure(work: Promise<unknown>): Promise<TidemarkError> {
  const error: unknown = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof TidemarkError) return error;
  throw new Error(`expected a TidemarkError, got ${inspect(error)}`);
}

test("what was written is there after a stop and a new start, and the stopped server is gone", async () => {
  const first = await Azurite.start(dir);
  await using sink = sinkOn(first);
  await sink.createContainer();
  await sink.putObject("head", new Uint8Array([1, 2, 3]), { ifAbsent: true });
  await first.stop();
  await first.stop();
  expect(
    await FileLock.tryAcquire(azuritePaths(dir).serverLock, "exclusive").then((lock) =>
      lock?.release().then(() => true),
    ),
  ).toBe(true);
  await using second = await Azurite.start(dir);
  await using later = sinkOn(second);
  expect([...(await later.getObject("head", 10)).bytes]).toEqual([1, 2, 3]);
});

describe("other users of the machine", () => {
  test("cannot use a server with the published account key, nor read key and data, with any umask", async () => {
    const before = process.umask(0);
    onTestFinished(() => void process.umask(before));
    await using server = await Azurite.start(dir);
    await using ours = sinkOn(server);
    await ours.createContainer();
    await using theirs = AzureSink.open(`${server.endpoint}/vault`, {
      kind: "key",
      account: developmentAccount,
      key: developmentKey,
    });
    expect((await failure(theirs.statObject("head"))).code).toBe("ACCESS_REFUSED");
    await ours.putObject("head", new Uint8Array([1]), { ifAbsent: true });
    await server.stop();
    const names = await readdir(dir, { recursive: true });
    const open = ["", ...names].filter((name) => (statSync(join(dir, name)).mode & 0o077) !== 0);
    expect(open).toEqual([]);
    expect(names.length).toBeGreaterThan(5);
  });

  test("have folders that this user is refused", async (context) => {
    if (process.geteuid?.() !== 0) context.skip("only root can give a folder to another user");
    await mkdir(dir);
    await chown(dir, 65_534, 65_534);
    const error = await failure(Azurite.start(dir));
    expect(error.code).toBe("ACCESS_REFUSED");
    expect(error.message).toContain("65534");
  });

  test("cannot slip in a key of theirs", async (context) => {
    if (process.geteuid?.() !== 0) context.skip("only root can give a file to another user");
    await mkdir(dir);
    await writeFile(azuritePaths(dir).key, developmentKey);
    await chown(azuritePaths(dir).key, 65_534, 65_534);
    expect((await failure(Azurite.start(dir))).code).toBe("DAMAGED");
  });
});

test("a server that cannot save says so when it is stopped", async () => {
  const server = await Azurite.start(dir);
  await using sink = sinkOn(server);
  await sink.createContainer();
  // Azurite writes its database under this name first.
  await mkdir(`${azuritePaths(dir).blobDatabase}~`);
  const error = await failure(server.stop());
  expect(error.code).toBe("STORE_UNREACHABLE");
  expect(error.message).toContain("EISDIR");
});

deepTest("a server that ends while its users are looked for still says that it could not save", async () => {
  const server = await Azurite.start(dir);
  await using sink = sinkOn(server);
  await sink.createContainer();
  await mkdir(`${azuritePaths(dir).blobDatabase}~`);
  const { usersLock, serverLock } = azuritePaths(dir);
  const tryAcquire = FileLock.tryAcquire.bind(FileLock);
  // The first look finds the users lock held by the ending server, the second finds it free.
  const spy = vi.spyOn(FileLock, "tryAcquire").mockImplementation(async (path, mode) => {
    if (path !== usersLock) return tryAcquire(path, mode);
    for (;;) {
      const free = await tryAcquire(serverLock, "exclusive");
      await free?.release();
      const lock = await tryAcquire(path, mode);
      if ((lock === undefined) === (mode === "exclusive") || free !== undefined) return lock;
      await lock?.release();
    }
  });
  try {
    expect((await failure(server.stop())).code).toBe("STORE_UNREACHABLE");
  } finally {
    spy.mockRestore();
  }
});

describe("users of one folder", () => {
  test("two starts at once share one server", async () => {
    const [first, second, elsewhere] = await Promise.all([Azurite.start(dir), Azurite.start(dir), startElsewhere()]);
    expect(second.pid).toBe(first.pid);
    expect(second.endpoint).toBe(first.endpoint);
    expect(elsewhere.serverPid).toBe(first.pid);
    await killed(elsewhere.child, "SIGTERM");
    await Promise.all([first.stop(), second.stop()]);
  });

  deepTest("SIGUSR1 opens no inspector of the server, which has the account's key", async () => {
    const server = await Azurite.start(dir);
    process.kill(server.pid, "SIGUSR1");
    await server.stop();
    expect(readFileSync(join(dir, "tidemark-server.log"), "utf8")).toBe("");
  });

  deepTest("when the last user has stopped, no host is left, not even one that another was faster than", async () => {
    const [first, second] = await Promise.all([Azurite.start(dir), Azurite.start(dir)]);
    await first.stop();
    await second.stop();
    expect(processesIn(dir)).toEqual([]);
  });

  deepTest("a host that is let go before it has the folder's lock leaves the folder as it is", async () => {
    await mkdir(dir);
    const script = fileURLToPath(new URL("../../dist/sink/azurite-host.js", import.meta.url));
    const host = spawn(process.execPath, [script, dir], { stdio: ["ignore", "inherit", "inherit"] });
    children.add(host);
    const [code] = (await once(host, "exit")) as [number];
    expect(code).toBe(exitOtherHost);
    expect(existsSync(azuritePaths(dir).state)).toBe(false);
  });

  deepTest("the server stays until the last user has stopped, whichever process started it", async () => {
    const starter = await Azurite.start(dir);
    const other = await Azurite.start(dir);
    await using sink = sinkOn(other);
    await starter.stop();
    expect(await sink.createContainer()).toBe(true);
    await other.stop();
    expect(await processStartTime(other.pid)).toBeUndefined();
  });

  deepTest("a new user of a server that is ending gets a new one, with the data of the old", async () => {
    const first = await Azurite.start(dir);
    await using sink = sinkOn(first);
    await sink.createContainer();
    const [, second] = await Promise.all([first.stop(), Azurite.start(dir)]);
    await using again = sinkOn(second);
    expect(await again.createContainer()).toBe(false);
    await second.stop();
  });
});

describe("a death", () => {
  deepTest("of the starter ends its server by itself", async () => {
    const { child, serverPid } = await startElsewhere();
    expect(await processStartTime(serverPid)).toBeTypeOf("string");
    await killed(child, "SIGKILL");
    await serverGone();
    await using next = await Azurite.start(dir);
    expect(next.pid).not.toBe(serverPid);
  });

  deepTest("of the starter leaves the server to another user", async () => {
    const { child, serverPid } = await startElsewhere();
    const user = await Azurite.start(dir);
    expect(user.pid).toBe(serverPid);
    await killed(child, "SIGKILL");
    await using sink = sinkOn(user);
    expect(await sink.createContainer()).toBe(true);
    await user.stop();
    await serverGone();
  });

  deepTest("of the server frees the folder for a new one", async () => {
    const first = await Azurite.start(dir);
    process.kill(first.pid, "SIGKILL");
    await using second = await Azurite.start(dir);
    expect(second.pid).not.toBe(first.pid);
    await first.stop();
    await using sink = sinkOn(second);
    expect(await sink.createContainer()).toBe(true);
  });

  test("that is not one: a stopped server is killed and replaced", async () => {
    const first = await Azurite.start(dir);
    process.kill(first.pid, "SIGSTOP");
    await using second = await Azurite.start(dir, { frozenAfterMs: 200 });
    expect(second.pid).not.toBe(first.pid);
    await using sink = sinkOn(second);
    expect(await sink.createContainer()).toBe(true);
    await first.stop();
  });
});

deepTest("a state file that names a dead process and another folder's server is not believed", async () => {
  await using other = await Azurite.start(join(folder, "other"));
  const first = await Azurite.start(dir);
  await first.stop();
  const { port } = new URL(other.endpoint);
  await writeFile(
    azuritePaths(dir).state,
    JSON.stringify({ state: "listening", pid: first.pid, startTime: "1", port: Number(port) }),
  );
  await using second = await Azurite.start(dir);
  expect(second.endpoint).not.toBe(other.endpoint);
});

test("an aborted start ends with INTERRUPTED and leaves no server", async () => {
  const controller = new AbortController();
  const start = failure(Azurite.start(dir, { signal: controller.signal }));
  setImmediate(() => {
    controller.abort();
  });
  expect((await start).code).toBe("INTERRUPTED");
  expect(processesIn(folder)).toEqual([]);
});

describe("a folder that cannot be used", () => {
  test("holds other things", async () => {
    await mkdir(dir);
    await writeFile(join(dir, "thesis.txt"), "…");
    const error = await failure(Azurite.start(dir));
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.remedy).toContain("empty");
  });

  test("is a file", async () => {
    await writeFile(dir, "");
    expect((await failure(Azurite.start(dir))).code).toBe("INVALID_ARGUMENT");
    await rm(dir);
  });

  deepTest.each(["blobDatabase", "extentDatabase"] as const)("has a %s that is cut off or empty", async (database) => {
    const path = azuritePaths(dir)[database];
    await (await Azurite.start(dir)).stop();
    const text = await readFile(path);
    await truncate(path, text.length - 5);
    const cut = await failure(Azurite.start(dir));
    expect(cut.code).toBe("DAMAGED");
    expect(cut.message).toContain(path);
    await truncate(path, 0);
    const empty = await failure(Azurite.start(dir));
    expect(empty.code).toBe("DAMAGED");
    expect(empty.message).toContain(`${path} is empty`);
  });

  deepTest("is served by an Azurite that another program started, which can open our data", async () => {
    const ours = await Azurite.start(dir);
    await using sink = sinkOn(ours);
    await sink.createContainer();
    await ours.stop();
    const main = fileURLToPath(
      new URL("blob/main.js", `file://${createRequire(import.meta.url).resolve("azurite/dist/src/main.js")}`),
    );
    const foreign = spawn(
      process.execPath,
      [main, "--silent", "--disableTelemetry", "--location", dir, "--blobPort", "0"],
      {
        stdio: ["ignore", "pipe", "inherit"],
      },
    );
    children.add(foreign);
    let endpoint: string | undefined;
    for await (const line of createInterface(foreign.stdout)) {
      endpoint = /listens on (http:\S+)/.exec(line)?.[1];
      if (endpoint !== undefined) break;
    }
    const error = await failure(Azurite.start(dir));
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).toContain(String(foreign.pid));
    await using theirs = AzureSink.open(`${String(endpoint)}/${developmentAccount}/vault`, {
      kind: "key",
      account: developmentAccount,
      key: developmentKey,
    });
    expect(await theirs.createContainer()).toBe(false);
    await killed(foreign, "SIGTERM");
  });
});
