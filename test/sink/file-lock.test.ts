import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FileLock, Turnstile } from "../../sink/file-lock.ts";
import { collectGarbage } from "../collect-garbage.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { expectCode } from "./expectations.ts";

describe("FileLock", () => {
  let folder: string;
  let path: string;

  beforeEach(async () => {
    folder = createFolder("lock");
    path = join(folder, "lock");
  });

  afterEach(async () => {
    await removeFolder(folder);
  });

  test("an exclusive lock excludes every other, also in one process", async () => {
    await using lock = await FileLock.acquire(path, "exclusive");
    expect(lock.mode).toBe("exclusive");
    expect(await FileLock.tryAcquire(path, "exclusive")).toBeUndefined();
    expect(await FileLock.tryAcquire(path, "shared")).toBeUndefined();
  });

  test("a lock whose holder keeps no reference to it is held all the same", async () => {
    await FileLock.acquire(path, "exclusive");
    await new Promise(setImmediate);
    collectGarbage();
    // Descriptors of garbage are closed in a later turn.
    for (let turn = 0; turn < 10; turn += 1) await new Promise(setImmediate);
    expect(await FileLock.tryAcquire(path, "exclusive")).toBeUndefined();
  });

  test("shared locks go together and exclude an exclusive one until the last is released", async () => {
    const first = await FileLock.acquire(path, "shared");
    const second = await FileLock.acquire(path, "shared");
    await first.release();
    expect(await FileLock.tryAcquire(path, "exclusive")).toBeUndefined();
    await second.release();
    await (await FileLock.acquire(path, "exclusive")).release();
  });

  test("releasing twice is the same as once, and does not release another's lock", async () => {
    const first = await FileLock.acquire(path, "exclusive");
    await Promise.all([first.release(), first.release()]);
    await using second = await FileLock.acquire(path, "exclusive");
    await first.release();
    expect(await FileLock.tryAcquire(path, "shared")).toBeUndefined();
    expect(second.path).toBe(path);
  });

  test("a waiting acquire gets the lock once it is released", async () => {
    const first = await FileLock.acquire(path, "exclusive");
    const order: string[] = [];
    const waiting = FileLock.acquire(path, "exclusive").then((lock) => {
      order.push("acquired");
      return lock;
    });
    await new Promise(setImmediate);
    order.push("released");
    await first.release();
    await (await waiting).release();
    expect(order).toEqual(["released", "acquired"]);
  });

  test("waiting ends with INTERRUPTED when the signal is aborted, before or meanwhile", async () => {
    const held = await FileLock.acquire(path, "exclusive");
    await expectCode(FileLock.acquire(path, "shared", { signal: AbortSignal.abort() }), "INTERRUPTED");
    const controller = new AbortController();
    const waiting = FileLock.acquire(path, "exclusive", { signal: controller.signal });
    setImmediate(() => {
      controller.abort();
    });
    await expectCode(waiting, "INTERRUPTED");
    await held.release();
  });

  test("waiting ends with STORE_UNREACHABLE when its time is up", async () => {
    const held = await FileLock.acquire(path, "exclusive");
    await expectCode(FileLock.acquire(path, "exclusive", { waitMsMax: 5 }), "STORE_UNREACHABLE");
    await held.release();
  });

  test("a file that was removed while it was locked holds no process off, and its new self locks as ever", async () => {
    const first = await FileLock.acquire(path, "exclusive");
    await rm(path);
    const second = await FileLock.acquire(path, "exclusive");
    await first.release();
    expect(await FileLock.tryAcquire(path, "exclusive")).toBeUndefined();
    await second.release();
  });

  describe("between processes", () => {
    let child: ChildProcess | undefined;

    /**
     * A process that runs `script` and then waits; resolves once the script has printed something.
     */
    async function startChild(script: string): Promise<void> {
      const started = spawn(process.execPath, ["-e", `${script}; setInterval(() => {}, 1000);`], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      child = started;
      await once(started.stdout, "data");
    }

    async function killChild(): Promise<void> {
      if (child === undefined) return;
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
      child = undefined;
    }

    afterEach(killChild);

    test("a lock is gone when the process that held it has been killed", async () => {
      const koffi = JSON.stringify(createRequire(import.meta.url).resolve("koffi"));
      await startChild(`
        const fd = require("node:fs").openSync(${JSON.stringify(path)}, "a");
        console.log(require(${koffi}).load(null).func("int flock(int fd, int operation)")(fd, 2 | 4))`);
      expect(await FileLock.tryAcquire(path, "exclusive")).toBeUndefined();
      await killChild();
      const lock = await FileLock.tryAcquire(path, "exclusive");
      expect(lock).toBeDefined();
      await lock?.release();
    });

    test("a child that was started meanwhile does not keep the lock of its parent", async () => {
      const lock = await FileLock.acquire(path, "exclusive");
      await startChild("console.log(1)");
      await lock.release();
      const again = await FileLock.tryAcquire(path, "exclusive");
      expect(again).toBeDefined();
      await again?.release();
    });
  });
});

describe("Turnstile", () => {
  test("tasks pass one at a time in the order of their coming, also when those before fail", async () => {
    const turnstile = new Turnstile();
    const seen: string[] = [];
    const task = (name: string) => async (): Promise<string> => {
      seen.push(`${name} in`);
      await new Promise(setImmediate);
      seen.push(`${name} out`);
      if (name === "second") throw new Error("second failed");
      return name;
    };
    const results = await Promise.allSettled(["first", "second", "third"].map((name) => turnstile.pass(task(name))));
    expect(seen).toEqual(["first in", "first out", "second in", "second out", "third in", "third out"]);
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
  });
});
