/** `tidemark replica` as users meet it. */
import { existsSync, statSync } from "node:fs";
import { expect, it } from "vitest";
import { changeImage, sameFiles, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("brings a replica to each new point, shows, compares and removes it", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 2);
  await place.json("replicate", "a.img", "--disk", "a");
  const run = ["replica", "run", "--disk", "a", "--to", "file:copy.img", "--once"];
  const first = await place.json(...run);
  expect(first.lines).toContainEqual(expect.objectContaining({ type: "applied", sequence: 1, isWhole: true }));
  expect(first.last).toMatchObject({ command: "replica run", disk: "a", sequence: 1, applications: 1 });
  changeImage(place.path("a.img"), 8192, Buffer.alloc(4096, 7));
  await place.json("replicate", "a.img", "--disk", "a");
  const listed = await place.json("replica", "show");
  expect(listed.lines).toMatchObject([
    { type: "replica", state: "behind", behindPoints: 1, target: `file:${place.path("copy.img")}` },
    { type: "summary", command: "replica show", replicas: 1 },
  ]);
  const second = (await place.json(...run)).lines.find(({ type }) => type === "applied");
  expect(second).toMatchObject({ sequence: 2, isWhole: false, bytesWritten: 4096 });
  expect(sameFiles(place.path("copy.img"), place.path("a.img"))).toBe(true);
  const replica = String(listed.lines[0]?.["replica"]);
  const text = await place.run(["replica", "show", replica, "--vault", "dir:vault"]);
  expect(text.stdout).toMatch(/: current\n[^]*point +2 of /);
  expect((await place.run(["replica", "show", "--vault", "dir:vault"])).stdout).toMatch(/current +2 [^]*1 replica/);
  expect(await place.json("replica", "verify", replica)).toMatchObject({ code: 0, last: { equal: true } });
  changeImage(place.path("copy.img"), 4096, Buffer.from("foreign"));
  const differing = await place.json("replica", "verify", replica);
  expect(differing).toMatchObject({ code: 3, last: { command: "replica verify", equal: false } });
  expect(differing.lines).toContainEqual(expect.objectContaining({ type: "damage", code: "SOURCE_DIFFERS" }));
  expect(await place.json("replica", "show", replica)).toMatchObject({ last: { state: "changed", point: null } });
  const kept = await place.json("replica", "remove", replica, "--keep-target");
  expect(kept).toMatchObject({ code: 0, last: { command: "replica remove", keptTarget: true } });
  expect(statSync(place.path("copy.img")).size).toBe(statSync(place.path("a.img")).size);
  expect(await place.json("replica", "show", replica)).toMatchObject({ code: 2 });
  await place.json("replica", "run", "--disk", "a", "--to", "file:other.vhd", "--once");
  const other = String((await place.json("replica", "show")).lines[0]?.["replica"]);
  await place.json("replica", "remove", other);
  expect(existsSync(place.path("other.vhd"))).toBe(false);
}, 60_000);

it("makes a replica the target of a failover, which moves the last difference, and gives it back", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  await place.json("replica", "run", "--disk", "a", "--to", "file:copy.img", "--once");
  changeImage(place.path("a.img"), 8192, Buffer.alloc(4096, 7));
  const move = ["--disk", "a", "--to", "replica"];
  expect(await place.json("failover", "test", ...move)).toMatchObject({ last: { code: "INVALID_ARGUMENT" } });
  const done = (await place.json("failover", "planned", ...move, "--source", "a.img")).last;
  expect(done).toMatchObject({ state: "PlannedFailoverCompleted", bytesWritten: 4096, servedBy: null });
  expect(sameFiles(place.path("copy.img"), place.path("a.img"))).toBe(true);
  const replica = String((await place.json("replica", "show")).lines[0]?.["replica"]);
  const shown = await place.run(["replica", "show", replica, "--vault", "dir:vault"]);
  expect(shown.stdout).toMatch(/: failed-over\n[^]*run +[0-9a-f]{8}: /);
  await place.json("failover", "cancel", String(done["run"]));
  expect(await place.json("replica", "show", replica)).toMatchObject({ last: { state: "current", run: null } });
}, 60_000);

it("refuses what is no target of a replica, with what to type", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  for (const [to, code] of [
    ["file:a.img", "TARGET_EXISTS"],
    ["file:vault/x.img", "INVALID_ARGUMENT"],
    ["x.img", "INVALID_ARGUMENT"],
    ["blob:x.vhd", "UNSUPPORTED"],
  ] as const)
    expect(await place.json("replica", "run", "--disk", "a", "--to", to, "--once"), to).toMatchObject({
      last: { type: "error", code },
    });
  expect((await place.json("replica", "show")).last).toMatchObject({ replicas: 0 });
}, 60_000);
