/** `tidemark disks remove` and `rename`. */
import { expect, it } from "vitest";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("says what would go, refuses a pinned point with the command to type, and removes the disk", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  await place.json("points", "pin", "--disk", "a", "--point", "1");
  const refused = await place.json("disks", "remove", "--disk", "a");
  expect(refused).toMatchObject({ code: 1, last: { code: "POINT_HELD" } });
  const remedy = /run `tidemark (.+)`/.exec(String(refused.last["remedy"]))?.[1] ?? "";
  expect(await place.json(...remedy.split(" "))).toMatchObject({ code: 0, last: { removedPins: 1 } });
  const dry = await place.run(["disks", "remove", "--disk", "a", "--dry-run", "--vault", "dir:vault"]);
  expect(dry).toMatchObject({ code: 0 });
  expect(dry.stdout).toMatch(/^disk a would go with 1 point \(.+\)\n`tidemark collect` would then free \d/);
  expect((await place.json("disks", "remove", "--disk", "a")).last).toMatchObject({
    type: "summary",
    command: "disks remove",
    disk: "a",
    dryRun: false,
    removedPoints: 1,
  });
  expect((await place.json("disks", "list")).last).toMatchObject({ disks: 0 });
  expect((await place.json("vault", "show")).last).toMatchObject({ disks: 0 });
  expect((await place.json("collect")).last).toMatchObject({ storedBytesAfter: 0 });
  for (const words of [
    ["disks", "remove"],
    ["points", "list"],
    ["prune", "--policy", "days:0"],
  ] as const)
    expect(await place.json(...words, "--disk", "a")).toMatchObject({ code: 10, last: { code: "DISK_NOT_FOUND" } });
}, 30_000);

it("renames a disk, and says how to go on where a name is taken", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a", "--label", "first");
  await place.json("replicate", "a.img", "--disk", "b");
  const taken = await place.json("disks", "rename", "--disk", "a", "--to", "b");
  expect(taken).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  const { stdout, code } = await place.run(["disks", "rename", "--disk", "a", "--to", "c", "--vault", "dir:vault"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^disk a is c now, with 1 point \(/);
  expect((await place.json("points", "show", "--disk", "c", "--point", "latest")).last).toMatchObject({
    label: "first",
  });
  expect(await place.json("points", "list", "--disk", "a")).toMatchObject({ code: 10 });
}, 30_000);
