/** `tidemark failover` and `tidemark jobs` as users meet them. */
import { readdirSync } from "node:fs";
import { expect, it } from "vitest";
import { sameFiles, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("carries runs from test to cancel, and lists runs and jobs", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  const to = ["--disk", "a", "--to", `file:${place.path("t.img")}`];
  const failing = await place.json("failover", "test", ...to, "--check", "echo broken; exit 4");
  expect(failing).toMatchObject({ code: 1, last: { type: "error", code: "HOOK_FAILED" } });
  const listed = await place.json("failover", "list");
  expect(listed.last).toMatchObject({ command: "failover list", runs: 1, open: 1 });
  const run = String(listed.lines[0]?.["run"]);
  const shown = await place.run(["failover", "show", run, "--vault", "dir:vault"]);
  expect(shown.stdout).toMatch(/TestFailoverCompletionFailed/);
  expect(shown.stdout).toMatch(/exit code 4\n +broken/);
  expect(shown.stdout).toMatch(/Commit: a test is not committed/);
  expect(await place.json("failover", "commit", run)).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  expect(await place.json("failover", "cleanup", run, "--note", "it fails")).toMatchObject({
    code: 0,
    last: { command: "failover cleanup", state: "None", successful: false, leftovers: [] },
  });
  const done = await place.json("failover", "unplanned", ...to);
  expect(done.last).toMatchObject({ command: "failover unplanned", state: "UnplannedFailoverCompleted" });
  expect(sameFiles(place.path("t.img"), place.path("a.img"))).toBe(true);
  expect(await place.json("replicate", "a.img", "--disk", "a")).toMatchObject({ code: 11 });
  const second = String(done.last["run"]);
  expect(await place.json("reprotect", second)).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  const jobs = await place.json("jobs", "list");
  expect(jobs.lines.slice(0, -1).map(({ operation }) => operation)).toEqual([
    "UnplannedFailover",
    "TestFailoverCleanup",
    "TestFailover",
  ]);
  expect(await place.json("jobs", "show", `${second}-1`)).toMatchObject({ last: { state: "Succeeded", run: second } });
  expect(await place.json("jobs", "resume", second)).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  expect(await place.json("failover", "cancel", second)).toMatchObject({ last: { state: "Protected" } });
  expect(readdirSync(place.folder).filter((name) => name.startsWith("t.img"))).toEqual([]);
}, 60_000);

it("refuses what no run can be made of, with what to type", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  for (const words of [
    ["test", "--to", "file:x.img"],
    ["test", "--disk", "a", "--to", "file:vault/x.img"],
    ["test", "--disk", "a", "--to", "file:x.img", "--ttl", "soon"],
    ["test", "--disk", "a", "--to", "instant:unix:x.sock,image=vault/x.img"],
    ["test", "--disk", "a", "--to", "instant:tcp:127.0.0.1:0"],
    ["show", "00000000"],
    ["unplanned", "--disk", "a", "--to", "file:x.img", "--commit", "soon"],
  ])
    expect(await place.json("failover", ...words), words.join(" ")).toMatchObject({
      code: 2,
      last: { type: "error", code: "INVALID_ARGUMENT" },
    });
}, 60_000);

it("takes a disk away and back, and cancels, exports and disables", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  const moving = ["failover", "planned", "--disk", "a", "--to", "file:moved.img", "--source", "a.img"];
  await place.json("replicate", "a.img", "--disk", "a");
  const done = await place.json(...moving, "--commit", "rollback-after:60m");
  expect(done.last).toMatchObject({ state: "PlannedFailoverCompleted", ending: { action: "rollback" } });
  const run = String(done.last["run"]);
  expect((await place.run(["failover", "show", run, "--vault", "dir:vault"])).stdout).toMatch(/rollback at/);
  await place.json("failover", "commit", run);
  await place.json("reprotect", run);
  const back = await place.json("failback", run, "--to", "a.img", "--note", "home again");
  expect(back.last).toMatchObject({ command: "failback", state: "PlannedFailoverCompleted" });
  const second = String(back.last["run"]);
  expect(await place.json("jobs", "cancel", second)).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  expect(await place.json("migrate", "complete", second)).toMatchObject({ last: { state: "MarkedForDeletion" } });
  expect(await place.json("replicate", "a.img", "--disk", "a")).toMatchObject({ code: 11 });
  const csv = (await place.run(["jobs", "export", "--since", "1 hour ago", "--vault", "dir:vault"])).stdout;
  expect(csv).toMatch(/^run,job,scenarioName,state,startTime,/);
  expect(csv).toMatch(/Failback,Succeeded,.*ResynchronizationInitiated,Succeeded/);
  expect((await place.json("jobs", "export")).lines.at(0)).toMatchObject({
    operation: "PlannedFailover",
    disks: ["a"],
  });
  expect(await place.json("disks", "enable", "--disk", "a")).toMatchObject({ last: { disk: "a" } });
  expect(await place.json("disks", "disable", "--disk", "a", "--purge")).toMatchObject({
    last: { command: "disks disable", purged: true, reason: "NotSpecified" },
  });
  expect((await place.json("disks", "list")).last).toMatchObject({ disks: 0 });
}, 60_000);
