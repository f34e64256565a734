/**
 * Hooks with real processes: what is frozen is thawed, whatever happens to the command, to the work
 * or to us.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync, watch, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { CommandHookOptions, Hook } from "../../../../engine/replication/protection/hooks.ts";
import { commandHook, functionHook, withFreeze } from "../../../../engine/replication/protection/hooks.ts";
import type { HookStep } from "../../../../engine/store/format/documents.ts";
import { builtModule } from "../../../built-module.ts";
import { deepTest } from "../../../deep-test.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

let folder: string;
let log: string;
beforeEach(() => {
  folder = createFolder("hooks");
  log = join(folder, "log");
  writeFileSync(log, "");
});
afterEach(async () => {
  await removeFolder(folder);
});

const logged = (): string[] => readFileSync(log, "utf8").split("\n").slice(0, -1);
const note = (word: string): string => `echo ${word} >>'${log}'`;
const noted = (options: Partial<CommandHookOptions> = {}): Hook => {
  return commandHook({ pre: note("pre"), post: note("post"), disk: "d", ...options });
};
const generous = { timeoutMs: 20_000 };

describe("a freeze", () => {
  test("holds the application while the cut is made, and thaws it", async () => {
    const outcome = await withFreeze(noted(), generous, async () => logged());
    expect(outcome.result).toEqual(["pre"]);
    expect(outcome.frozen).toBe(true);
    expect(outcome.reason).toBeUndefined();
    expect(outcome.steps.map(({ phase, exitCode, signal }) => ({ phase, exitCode, signal }))).toEqual([
      { phase: "pre", exitCode: 0, signal: null },
      { phase: "post", exitCode: 0, signal: null },
    ]);
    expect(logged()).toEqual(["pre", "post"]);
  });

  test("that fails is thawed before the cut, which is made all the same", async () => {
    const hook = noted({ pre: `${note("pre")}; echo out of order >&2; exit 3` });
    const outcome = await withFreeze(hook, generous, async () => logged());
    expect(outcome.result).toEqual(["pre", "post"]);
    expect(outcome.frozen).toBe(false);
    expect(outcome.reason).toMatch(/pre command .* ended with exit code 3: out of order/);
    expect(outcome.steps.map(({ exitCode }) => exitCode)).toEqual([3, 0]);
  });

  test("that takes too long is ended, and thawed before the cut", async () => {
    const outcome = await withFreeze(noted({ pre: "sleep 600" }), { timeoutMs: 300 }, async () => logged());
    expect(outcome).toMatchObject({ result: ["post"], frozen: false, steps: [{ signal: "SIGTERM" }, { exitCode: 0 }] });
    expect(outcome.reason).toContain("after 300 ms");
  });

  /** Freezes until the log says that the command is at work, and then calls it off. */
  async function calledOff(pre: string): Promise<HookStep> {
    const hook = noted({ pre });
    const stop = new AbortController();
    const working = fileHolds(log, "\n");
    const freezing = hook.freeze(stop.signal);
    await working;
    stop.abort();
    const step = await freezing;
    expect((await hook.thaw()).exitCode).toBe(0);
    return step;
  }

  test("that is called off takes everything with it that it started", async () => {
    const step = await calledOff(`sh -c 'echo $$ >>"${log}"; exec sleep 600' & wait`);
    expect(step.signal).toBe("SIGTERM");
    expect(runs(Number(logged()[0]))).toBe(false);
  });

  test("that does not heed the request to end is killed", async () => {
    expect(await calledOff(`trap '' TERM; ${note("pre")}; while :; do sleep 0.1; done`)).toMatchObject({
      exitCode: null,
      signal: "SIGKILL",
    });
  });

  test("that is called off may still end by itself", async () => {
    expect(await calledOff(`trap 'echo bye; exit 7' TERM; ${note("pre")}; sleep 600 & wait`)).toMatchObject({
      exitCode: 7,
      output: "bye\n",
    });
  });

  test("that succeeds after its time is no freeze", async () => {
    const step: HookStep = { phase: "pre", command: "c", exitCode: 0, signal: null, elapsedMs: 0, output: "" };
    const late: Hook = {
      freeze: (signal) => once(signal, "abort").then(() => step),
      thaw: async () => ({ ...step, phase: "post" }),
    };
    const outcome = await withFreeze(late, { timeoutMs: 20 }, async () => "cut");
    expect(outcome).toMatchObject({ result: "cut", frozen: false });
  });

  test("may leave something running until the thaw ends it", async () => {
    const hook = noted({
      pre: `sleep 600 </dev/null >/dev/null 2>&1 & echo $! >'${folder}/holder'`,
      post: `kill "$(cat '${folder}/holder')"`,
    });
    const holder = (): number => Number(readFileSync(join(folder, "holder"), "utf8"));
    const outcome = await withFreeze(hook, generous, async () => runs(holder()));
    expect(outcome).toMatchObject({ result: true, frozen: true });
    expect(runs(holder())).toBe(false);
  });

  test("ends at the deadline although the cut is not made yet, and the cut's result is kept", async () => {
    let cut: (value: string) => void = () => undefined;
    const made = new Promise<string>((done) => {
      cut = done;
    });
    const hook = noted({ post: `${note("post")}; echo awake` });
    const thawed: Hook = {
      freeze: (signal) => hook.freeze(signal),
      thaw: async () => {
        const step = await hook.thaw();
        cut("late");
        return step;
      },
    };
    const outcome = await withFreeze(thawed, { timeoutMs: 500 }, () => made);
    expect(outcome).toMatchObject({
      result: "late",
      frozen: false,
      reason: expect.stringContaining("after 500 ms") as unknown,
    });
    expect(outcome.steps[1]?.output).toBe("awake\n");
  });

  test("is thawed when the cut fails, and the failure is passed on", async () => {
    const failure = new TidemarkError("CUT_TIMED_OUT", "writes are still under way");
    await expect(withFreeze(noted(), generous, () => Promise.reject(failure))).rejects.toBe(failure);
    expect(logged()).toEqual(["pre", "post"]);
  });

  test("that is interrupted is ended and thawed, and no cut is made", async () => {
    const stop = new AbortController();
    const hook = noted({ pre: `${note("pre")}; sleep 600` });
    const seen = fileHolds(log, "pre");
    const freezing = withFreeze(hook, { ...generous, signal: stop.signal }, () =>
      Promise.reject(new Error("no cut was expected")),
    );
    const settled = expect(freezing).rejects.toMatchObject({ code: "INTERRUPTED" });
    await seen;
    stop.abort();
    await settled;
    expect(logged()).toEqual(["pre", "post"]);
  });

  test("that is interrupted during the cut is thawed, and the cut is handed over", async () => {
    const stop = new AbortController();
    const outcome = await withFreeze(noted(), { ...generous, signal: stop.signal }, async () => {
      stop.abort();
      return "cut";
    });
    expect(outcome).toMatchObject({ result: "cut", frozen: false, reason: "the freeze was interrupted" });
    expect(logged()).toEqual(["pre", "post"]);
  });

  test("does not begin when it is interrupted before", async () => {
    await expect(
      withFreeze(noted(), { ...generous, signal: AbortSignal.abort() }, async () => 1),
    ).rejects.toMatchObject({
      code: "INTERRUPTED",
    });
    expect(logged()).toEqual([]);
  });

  test("is claimed no more when the thaw fails", async () => {
    const outcome = await withFreeze(noted({ post: "echo was not frozen; exit 1" }), generous, async () => "cut");
    expect(outcome).toMatchObject({
      result: "cut",
      frozen: false,
      reason: expect.stringMatching(/post command .* exit code 1: was not frozen/) as unknown,
    });
  });

  test("has a thaw that is ended when it takes too long", async () => {
    const outcome = await withFreeze(noted({ post: "sleep 600", thawTimeoutMs: 200 }), generous, async () => "cut");
    expect(outcome).toMatchObject({ frozen: false, steps: [{ exitCode: 0 }, { exitCode: null, signal: "SIGTERM" }] });
  });

  test("can be repeated with the same hook", async () => {
    const hook = noted();
    for (let turn = 0; turn < 3; turn++)
      expect(await withFreeze(hook, generous, async () => turn)).toMatchObject({ result: turn, frozen: true });
    expect(logged()).toEqual(["pre", "post", "pre", "post", "pre", "post"]);
  });

  test("whose command cannot be started says so", async () => {
    const outcome = await withFreeze(noted({ cwd: join(folder, "absent") }), generous, async () => "cut");
    expect(outcome).toMatchObject({
      result: "cut",
      frozen: false,
      reason: expect.stringMatching(/could not be run: .*ENOENT/) as unknown,
    });
  });
});

describe("what a command learns and tells", () => {
  const freezeOnce = async (options: Partial<CommandHookOptions>): Promise<HookStep> => {
    const { steps } = await withFreeze(noted(options), generous, async () => undefined);
    const [step] = steps;
    if (step === undefined) throw new Error("the freeze left no record");
    return step;
  };

  test("is a clean environment, the same time in both phases", async () => {
    process.env["TIDEMARK_TEST_SECRET"] = "hush";
    const hook = noted({
      pre: "env | sort",
      post: "env | sort",
      env: { LANG: "de_DE.UTF-8", PGHOST: "/run/pg" },
      now: () => 1_700_000_000_000,
    });
    const { steps } = await withFreeze(hook, generous, async () => undefined);
    delete process.env["TIDEMARK_TEST_SECRET"];
    const variables = (step: HookStep | undefined): Record<string, string> =>
      Object.fromEntries((step?.output ?? "").split("\n").map((line) => line.split("=", 2) as [string, string]));
    const shells = ["PWD", "OLDPWD", "SHLVL", "_", ""];
    const names = Object.keys(variables(steps[0])).filter((name) => !shells.includes(name));
    expect(names).toEqual(["HOME", "LANG", "PATH", "PGHOST", "TIDEMARK_DISK", "TIDEMARK_PHASE", "TIDEMARK_POINT_TIME"]);
    const common = { TIDEMARK_DISK: "d", TIDEMARK_POINT_TIME: "2023-11-14T22:13:20.000Z", LANG: "de_DE.UTF-8" };
    expect(variables(steps[0])).toMatchObject({ ...common, TIDEMARK_PHASE: "pre" });
    expect(variables(steps[1])).toMatchObject({ ...common, TIDEMARK_PHASE: "post" });
  });

  test("is kept to its last 4 KiB, in whole characters", async () => {
    const { output } = await freezeOnce({
      pre: `i=0; while [ $i -lt 3000 ]; do printf 'ää'; i=$((i+1)); done; echo end`,
    });
    expect(Buffer.byteLength(output)).toBeLessThanOrEqual(4096);
    expect(Buffer.byteLength(output)).toBeGreaterThan(4090);
    expect(output).toMatch(/^ä+end\n$/);
  });

  test("bears no control characters", async () => {
    const { output } = await freezeOnce({ pre: String.raw`printf 'a\033[31mred\033[0m\001\tb\n'` });
    expect(output).toBe("ared\u{fffd}\tb\n");
  });

  test("fits into a point's record however long and strange the command is", async () => {
    const pre = `exit 3 # \u0007\ud800${'"'.repeat(20_000)}`;
    const { steps, reason = "" } = await withFreeze(noted({ pre }), generous, async () => undefined);
    expect(steps[0]?.command).toBe(`exit 3 # \u{fffd}\u{fffd}${'"'.repeat(8192 - 11)}`);
    expect(steps[0]?.exitCode).toBe(3);
    expect(reason.length).toBeLessThanOrEqual(32_768);
    expect(reason).toMatch(/ended with exit code 3$/);
  });

  test("holds both streams, and does not wait for what was left running with them", async () => {
    const { output, exitCode } = await freezeOnce({
      pre: `echo out; echo err >&2; sleep 600 & echo $! >'${folder}/left'`,
    });
    process.kill(Number(readFileSync(join(folder, "left"), "utf8")));
    expect(output.split("\n").sort()).toEqual(["", "err", "out"]);
    expect(exitCode).toBe(0);
  });

  test("reads nothing from us", async () => {
    expect(await freezeOnce({ pre: "cat" })).toMatchObject({ exitCode: 0, output: "" });
  });
});

describe("the guard", () => {
  let builtHooks: string;

  beforeAll(async () => {
    builtHooks = await builtModule("engine/replication/protection/hooks.ts");
  });

  /**
   * A process of ours that freezes and then waits, as an agent that is just cutting; killed, it
   * thaws nothing itself.
   */
  function freezeElsewhere(pre: string, post: string): ChildProcess {
    const script = `
      import { commandHook, withFreeze } from ${JSON.stringify(builtHooks)};
      const hook = commandHook({ pre: process.argv[2], post: process.argv[3], disk: "d" });
      setInterval(() => undefined, 1000);
      await withFreeze(hook, { timeoutMs: 60_000 }, () => { console.log("frozen"); return new Promise(() => undefined); });
    `;
    const path = join(folder, "agent.mjs");
    writeFileSync(path, script);
    return spawn(process.execPath, [path, pre, post], { stdio: ["ignore", "pipe", "inherit"] });
  }

  test("thaws when the agent is killed while the application is frozen", async () => {
    const thawed = fileHolds(log, "post");
    const agent = freezeElsewhere(note("pre"), note('post "$TIDEMARK_PHASE $TIDEMARK_DISK"'));
    await said(agent, "frozen");
    agent.kill("SIGKILL");
    await thawed;
    expect(logged()).toEqual(["pre", "post post d"]);
  });

  test("ends a freeze that is under way when the agent is killed, and then thaws", async () => {
    const frozen = fileHolds(log, "pre");
    const thawed = fileHolds(log, "post");
    const agent = freezeElsewhere(`${note("pre $$")}; sleep 600; ${note("too late")}`, note("post"));
    await frozen;
    agent.kill("SIGKILL");
    await thawed;
    const [begun = "", ...rest] = logged();
    expect(rest).toEqual(["post"]);
    expect(runs(Number(begun.split(" ")[1]))).toBe(false);
  });

  deepTest("ends a freeze that heeds no request when the agent is killed", async () => {
    const frozen = fileHolds(log, "pre");
    const thawed = fileHolds(log, "post");
    const agent = freezeElsewhere(`trap '' TERM; ${note("pre $$")}; while :; do sleep 0.1; done`, note("post"));
    await frozen;
    agent.kill("SIGKILL");
    await thawed;
    expect(runs(Number(logged()[0]?.split(" ")[1]))).toBe(false);
  });

  test("is not moved by the signals that end a service", async () => {
    const thawed = fileHolds(log, "post");
    const agent = freezeElsewhere(note("pre"), note("post"));
    await said(agent, "frozen");
    const guards = childrenOf(agent.pid ?? 0);
    expect(guards).toHaveLength(1);
    for (const guard of guards) {
      process.kill(guard, "SIGTERM");
      process.kill(guard, "SIGHUP");
    }
    expect(logged()).toEqual(["pre"]);
    agent.kill("SIGKILL");
    await thawed;
    expect(logged()).toEqual(["pre", "post"]);
  });

  test("is gone after a thaw, and has not thawed again", async () => {
    const before = childrenOf(process.pid);
    await withFreeze(noted(), generous, async () => undefined);
    expect(childrenOf(process.pid).filter((child) => !before.includes(child))).toEqual([]);
    expect(logged()).toEqual(["pre", "post"]);
  });
});

describe("a hook of functions", () => {
  test("freezes and thaws around the cut", async () => {
    const calls: string[] = [];
    const hook = functionHook({
      name: "cache",
      freeze: async () => void calls.push("freeze"),
      thaw: async () => void calls.push("thaw"),
    });
    const outcome = await withFreeze(hook, generous, async () => calls.push("cut"));
    expect(calls).toEqual(["freeze", "cut", "thaw"]);
    expect(outcome).toMatchObject({ frozen: true, steps: [{ command: "cache", exitCode: 0 }, { exitCode: 0 }] });
  });

  test("that rejects leads to a crash-consistent cut that says why", async () => {
    const hook = functionHook({
      name: "cache",
      freeze: () => Promise.reject(new Error("busy")),
      thaw: async () => undefined,
    });
    const outcome = await withFreeze(hook, generous, async () => "cut");
    expect(outcome).toMatchObject({
      result: "cut",
      frozen: false,
      reason: 'the pre command "cache" could not be run: failed: busy',
    });
  });

  test("that never settles is left behind at the deadline", async () => {
    const hook = functionHook({
      name: "cache",
      freeze: () => new Promise(() => undefined),
      thaw: () => new Promise(() => undefined),
      thawTimeoutMs: 50,
    });
    const outcome = await withFreeze(hook, { timeoutMs: 50 }, async () => "cut");
    expect(outcome).toMatchObject({
      result: "cut",
      frozen: false,
      steps: [{ output: "did not end in time" }, { output: "did not end in time" }],
    });
  });
});

/** Whether a process runs; one that is dead and not yet buried does not. */
function runs(pid: number): boolean {
  const state = spawnSync("ps", ["-o", "stat=", "-p", String(pid)], { encoding: "utf8" }).stdout.trim();
  return state !== "" && !state.startsWith("Z");
}

function childrenOf(pid: number): number[] {
  const ps = spawnSync("ps", ["-A", "-o", "ppid=,pid="], { encoding: "utf8" });
  const pairs = ps.stdout.split("\n").map((line) => line.trim().split(/\s+/).map(Number));
  return pairs.flatMap(([parent, child]) => (parent === pid && child !== undefined && child !== ps.pid ? [child] : []));
}

async function said(child: ChildProcess, word: string): Promise<void> {
  for await (const bytes of child.stdout ?? []) if (String(bytes).includes(word)) return;
  throw new Error(`the process ended without saying ${word}`);
}

/** Resolves when a file holds the word; the test's time limit bounds it. */
function fileHolds(path: string, word: string): Promise<void> {
  return new Promise((done) => {
    const watcher = watch(path, check);
    function check(): void {
      if (!readFileSync(path, "utf8").includes(word)) return;
      watcher.close();
      done();
    }
    check();
  });
}
