/**
 * Each verb of a failover dies at each of its calls of the store and of its target's file: after
 * `resume` the outcome is that of a run that nothing interrupted, and after a cancel or a cleanup
 * everything is as before.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import type { RunSummary } from "../../../engine/failover/run-summary.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { byDepth, callsOf, inTurn } from "../../depth.ts";
import { closeModelVaults, openModelVault, redirected, sampleDisk, scribble } from "../../model-disk.ts";
import { namesIn } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";
import { type CrashPlace, combinations, dyingAt, endOf } from "./crash-rig.ts";

/** A deep run dies at every call, in two ways each. */
const sweepMsMax: number = byDepth(120_000, 1_200_000);

const memory = new MemoryStore();
const line: { current: MemorySink | FaultySink } = { current: new MemorySink({ store: memory }) };
const contents: Buffer[] = [];
const place: CrashPlace = { memory, line };
let vault: Vault;
let replicated: MemorySnapshot;
let folder: string;

beforeAll(async () => {
  vault = await openModelVault(redirected(line));
  const disk = sampleDisk(200_000, 1);
  for (const seed of [1, 2]) {
    await vault.replicate({ disk: "web", volume: disk });
    contents.push(Buffer.from(disk.bytes));
    scribble(disk, seed);
  }
  replicated = memory.snapshot();
});

afterEach(async () => {
  vi.restoreAllMocks();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

interface Verb {
  readonly name: string;
  /** Brings the run to where the verb begins; "" when there is none yet. */
  readonly before: () => Promise<string>;
  readonly work: (run: string) => Promise<unknown>;
  readonly state: string;
  /** What the target holds at the end; undefined: nothing is left. */
  readonly holds: number | undefined;
  /** What gives the run up; undefined: it cannot be given up any more. */
  readonly giveUp: "cleanup" | "cancel" | undefined;
}

const start = async (kind: "test" | "unplanned", point: string, to = "file:"): Promise<string> =>
  (await vault.failovers.start({ kind, disks: ["web"], to: `${to}${join(folder, "t.img")}`, point })).run;
const instant = "instant:unix:/run/none.sock,image=";
const nothing = async (): Promise<string> => await Promise.resolve("");

const verbs: readonly Verb[] = [
  {
    name: "a test",
    before: nothing,
    work: async () => await start("test", "2"),
    state: "TestFailoverCompleted",
    holds: 2,
    giveUp: "cleanup",
  },
  {
    name: "a cleanup",
    before: async () => await start("test", "2"),
    work: async (run) => await vault.failovers.cleanup({ run }),
    state: "None",
    holds: undefined,
    giveUp: "cleanup",
  },
  {
    name: "an unplanned failover",
    before: nothing,
    work: async () => await start("unplanned", "2"),
    state: "UnplannedFailoverCompleted",
    holds: 2,
    giveUp: "cancel",
  },
  {
    name: "a change of the point",
    before: async () => await start("unplanned", "2"),
    work: async (run) => await vault.failovers.changePoint({ run, point: "1" }),
    state: "ChangeRecoveryPointCompleted",
    holds: 1,
    giveUp: "cancel",
  },
  {
    name: "a cancel",
    before: async () => await start("unplanned", "2"),
    work: async (run) => await vault.failovers.cancel({ run }),
    state: "Protected",
    holds: undefined,
    giveUp: "cancel",
  },
  {
    name: "a commit",
    before: async () => await start("unplanned", "2"),
    work: async (run) => await vault.failovers.commit({ run, discardPoints: true }),
    state: "CommitFailoverCompleted",
    holds: 2,
    giveUp: undefined,
  },
  {
    name: "a completed migration",
    before: async () => await start("unplanned", "2"),
    work: async (run) => await vault.failovers.completeMigration({ run }),
    state: "MarkedForDeletion",
    holds: 2,
    giveUp: undefined,
  },
  {
    name: "a reprotection",
    before: async () => {
      const run = await start("unplanned", "2");
      await vault.failovers.commit({ run });
      return run;
    },
    work: async (run) => await vault.failovers.reprotect({ run }),
    state: "Protected",
    holds: 2,
    giveUp: undefined,
  },
];

/** The same to an instant target, where that is other work. */
const instantVerbs: readonly Verb[] = [
  {
    name: "an instant test",
    before: nothing,
    work: async () => await start("test", "2", instant),
    state: "TestFailoverCompleted",
    holds: 2,
    giveUp: "cleanup",
  },
  {
    name: "a change of the point of an instant target",
    before: async () => await start("unplanned", "2", instant),
    work: async (run) => await vault.failovers.changePoint({ run, point: "1" }),
    state: "ChangeRecoveryPointCompleted",
    holds: 1,
    giveUp: "cancel",
  },
  {
    name: "a cancel of an instant target",
    before: async () => await start("unplanned", "2", instant),
    work: async (run) => await vault.failovers.cancel({ run }),
    state: "Protected",
    holds: undefined,
    giveUp: "cancel",
  },
];

const follow = async (): Promise<unknown> =>
  await vault.replicas.run({ disk: "web", to: `file:${join(folder, "t.img")}`, once: true });
/** A replica of the first point, and a failover to it. */
const toReplica = async (): Promise<string> =>
  (await vault.failovers.start({ kind: "unplanned", disks: ["web"], to: "replica" })).run;

/** The same to a replica. */
const followedToReplica = async (): Promise<string> => {
  await follow();
  return await toReplica();
};
const replicaVerbs: readonly Verb[] = [
  {
    name: "a failover to a replica",
    before: async () => {
      await follow();
      return "";
    },
    work: toReplica,
    state: "UnplannedFailoverCompleted",
    holds: 2,
    giveUp: "cancel",
  },
  {
    name: "a cancel of a replica",
    before: followedToReplica,
    work: async (run) => await vault.failovers.cancel({ run }),
    state: "Protected",
    holds: undefined,
    giveUp: "cancel",
  },
  {
    name: "a commit of a replica",
    before: followedToReplica,
    work: async (run) => await vault.failovers.commit({ run }),
    state: "CommitFailoverCompleted",
    holds: 2,
    giveUp: undefined,
  },
];

async function setUp(verb: Verb): Promise<string> {
  memory.restore(replicated);
  liveSessions().clear();
  line.current = new MemorySink({ store: memory });
  folder = createFolder("failover-crash");
  const run = await verb.before();
  jobsBefore = (await vault.failovers.list())[0]?.jobs.length ?? 0;
  return run;
}

/** The process has died: its sessions are gone, and its calls end. */
function reconnect(): void {
  vi.restoreAllMocks();
  liveSessions().clear();
  line.current = new MemorySink({ store: memory });
}

/** Goes on with what a dead process left; does the verb anew where it had not begun. */
async function resume(verb: Verb, run: string): Promise<RunSummary> {
  const [found] = await vault.failovers.list();
  const begun = found !== undefined && (run === "" ? true : found.jobs.length > jobsBefore);
  if (!begun) await verb.work(run);
  else if (found.state !== verb.state) await vault.failovers.resume({ run: found.run });
  const [after] = await vault.failovers.list();
  if (after === undefined) throw new Error("there is no run");
  return after;
}

async function checkOutcome(verb: Verb, after: RunSummary): Promise<void> {
  expect(after.state).toBe(verb.state);
  const isReplica = replicaVerbs.includes(verb);
  if (verb.holds === undefined) await checkUndone(verb);
  else {
    const mark = verb.giveUp === undefined || isReplica ? [] : ["t.img.tidemark-run"];
    const isInstant = instantVerbs.includes(verb);
    expect(readdirSync(folder).sort()).toEqual(["t.img", ...(isInstant ? ["t.img.tidemark"] : []), ...mark]);
    const found = isInstant ? await hydrated() : readFileSync(join(folder, "t.img"));
    expect(found.equals(contents[verb.holds - 1] ?? Buffer.alloc(0))).toBe(true);
  }
  const isFollowed = isReplica && verb.giveUp !== undefined;
  expect(await namesIn(new MemorySink({ store: memory }), "disks/web/pins/")).toHaveLength(isFollowed ? 1 : 0);
  expect(await vault.replicas.list()).toHaveLength(isFollowed ? 1 : 0);
}

/** What an instant target holds when it is whole; its point is then free. */
async function hydrated(): Promise<Buffer> {
  const target = await vault.instant({ disk: "web", image: join(folder, "t.img") });
  await target.hydrated();
  await target.close();
  return readFileSync(join(folder, "t.img"));
}

/** Nothing is left at the target, and the disk can be replicated. A replica is one again. */
async function checkUndone(verb: Verb): Promise<void> {
  const sink = new MemorySink({ store: memory });
  const names = (await namesIn(sink, "disks/web/")).filter((name) => /failover|pins/.test(name));
  if (replicaVerbs.includes(verb)) {
    expect(names.filter((name) => !name.includes("/pins/"))).toEqual([]);
    await follow();
    expect(readFileSync(join(folder, "t.img")).equals(contents[1] ?? Buffer.alloc(0))).toBe(true);
  } else {
    expect(readdirSync(folder)).toEqual([]);
    expect(names).toEqual([]);
  }
  const disk = sampleDisk(200_000, 5);
  const { sequence } = await vault.replicate({ disk: "web", volume: disk });
  expect(sequence).toBe(3);
}

describe.each([...verbs, ...instantVerbs, ...replicaVerbs])("$name that dies", (verb) => {
  test(
    "at any call of the store goes on, or is given up",
    async () => {
      await setUp(verb).then(async (run) => {
        const sink = new FaultySink(new MemorySink({ store: memory }), []);
        line.current = sink;
        await verb.work(run);
        line.current = new MemorySink({ store: memory });
        const [after] = await vault.failovers.list();
        if (after !== undefined) await checkOutcome(verb, after);
        calls = sink.calls.length;
      });
      let died = 0;
      for (const [index, call] of callsOf(1, calls, 4).entries()) {
        for (const [effect, way] of inTurn(combinations, index)) {
          await removeFolder(folder);
          const run = await setUp(verb);
          const sink = new FaultySink(new MemorySink({ store: memory }), [
            { on: "any", when: call, fault: { kind: "crash", effect } },
          ]);
          line.current = sink;
          const end = await endOf(verb.work(run));
          reconnect();
          // A slow job looks for a request to stop, and an instant target is copied meanwhile: the
          // number of calls is not always the same.
          if (end === undefined) {
            for (const after of await vault.failovers.list()) await checkOutcome(verb, after);
            continue;
          }
          expect(end, `call ${call}, ${effect}`).toBeInstanceOf(CrashError);
          died += 1;
          if (way === "resume") await checkOutcome(verb, await resume(verb, run));
          else await giveUp(verb);
        }
      }
      expect(died).toBeGreaterThan(0);
    },
    sweepMsMax,
  );

  test(
    "at any call of a file goes on, or is given up",
    async () => {
      const run = await setUp(verb);
      const count = dyingAt(place, 0);
      await verb.work(run);
      vi.restoreAllMocks();
      for (const [index, call] of callsOf(1, count()).entries()) {
        for (const way of inTurn(["resume", "give up"] as const, index)) {
          await removeFolder(folder);
          const again = await setUp(verb);
          dyingAt(place, call);
          expect(await endOf(verb.work(again)), `file call ${call}`).toBeInstanceOf(CrashError);
          reconnect();
          if (way === "resume") await checkOutcome(verb, await resume(verb, again));
          else await giveUp(verb);
        }
      }
    },
    sweepMsMax,
  );
});

/** A store that is killed comes back as it was before the verb. What the verb did to files stays. */
describe.each([...verbs, ...instantVerbs, ...replicaVerbs].filter(({ before }) => before !== nothing))(
  "$name under a store that goes back",
  (verb) => {
    test(
      "is done again, or given up",
      async () => {
        const run = await setUp(verb);
        if (run === "") return;
        const sink = new FaultySink(new MemorySink({ store: memory }), []);
        line.current = sink;
        await verb.work(run);
        const ways = verb.giveUp === undefined ? (["again"] as const) : (["again", "give up"] as const);
        // After the last call, too: the verb has succeeded, and the store has forgotten all of it.
        for (const [index, call] of callsOf(1, sink.calls.length + 1, 5).entries()) {
          for (const way of inTurn(ways, index)) {
            await removeFolder(folder);
            const again = await setUp(verb);
            const before = memory.snapshot();
            line.current = new FaultySink(new MemorySink({ store: memory }), [
              { on: "any", when: call, fault: { kind: "crash", effect: "after" } },
            ]);
            await endOf(verb.work(again));
            reconnect();
            memory.restore(before);
            if (way === "give up") await giveUp(verb);
            else {
              await verb.work(again);
              const [after] = await vault.failovers.list();
              if (after !== undefined) await checkOutcome(verb, after);
            }
          }
        }
      },
      sweepMsMax,
    );
  },
);

let calls = 0;
let jobsBefore = 0;

async function giveUp(verb: Verb): Promise<void> {
  const [found] = await vault.failovers.list();
  if (verb.giveUp === undefined || found === undefined) return;
  if (found.state !== "None" && found.state !== "Protected") await vault.failovers[verb.giveUp]({ run: found.run });
  await checkUndone(verb);
}
