/** `tidemark prune` and the pins that keep points from it, as scripts and people use them. */
import { describe, expect, it } from "vitest";
import { changeImage, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

/** A disk with six points. */
async function placeWithPoints(): Promise<Place> {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  for (let point = 1; point <= 6; point += 1) {
    changeImage(place.path("a.img"), 4096, Buffer.from(`point ${String(point)}`));
    await place.json("replicate", "a.img", "--disk", "a");
  }
  return place;
}

describe("tidemark prune", () => {
  it("says what would go and why, explains one point, keeps what is pinned, and drops the rest", async () => {
    const place = await placeWithPoints();
    const pinned = await place.json(
      "points",
      "pin",
      "--disk",
      "a",
      "--point",
      "2",
      "--name",
      "audit",
      "--until",
      "2090-01-01T00:00:00Z",
    );
    expect(pinned.last).toMatchObject({
      type: "summary",
      command: "points pin",
      sequence: 2,
      pin: { name: "audit", until: "2090-01-01T00:00:00.000Z" },
    });
    const listed = await place.json("points", "list", "--disk", "a");
    expect(listed.lines.filter(({ pinned: isPinned }) => isPinned === true)).toMatchObject([
      { sequence: 2, held: false },
    ]);

    const dry = await place.json("prune", "--policy", "keep:last=2", "--dry-run");
    expect(dry.lines.filter(({ type }) => type === "decision").map(({ sequence, keep }) => [sequence, keep])).toEqual([
      [1, false],
      [2, true],
      [3, false],
      [4, false],
      [5, true],
      [6, true],
    ]);
    expect(dry.last).toMatchObject({
      type: "summary",
      command: "prune",
      dryRun: true,
      removedPoints: 3,
      keptPoints: 3,
      heldPoints: 0,
    });
    const told = await place.run(["prune", "--policy", "keep:last=2", "--dry-run", "--vault", "dir:vault"]);
    expect(told.stdout).toMatch(/DISK +POINT +TIME +CONS\. +STORED +GOES BECAUSE\na +1 /);
    expect(told.stdout).toContain("3 points would go, 3 points left");
    const why = await place.json("prune", "--policy", "keep:last=2", "--disk", "a", "--explain", "2");
    expect(why.last).toMatchObject({ type: "summary", command: "prune", disk: "a", sequence: 2, keep: true });
    expect(why.last["reasons"]).toEqual(expect.arrayContaining([expect.stringContaining("pinned")]));

    const pruned = await place.json("prune", "--policy", "keep:last=2");
    expect(pruned).toMatchObject({
      code: 0,
      last: { dryRun: false, removedPoints: 3, keptPoints: 3, disks: [{ disk: "a", removedPoints: 3 }] },
    });
    expect(Object.keys(pruned.last)).toEqual(
      expect.arrayContaining(["removedStoredBytes", "skippedDisks", "requests", "elapsedMs"]),
    );
    const unpinned = await place.json("points", "unpin", "--disk", "a", "--point", "2");
    expect(unpinned.last).toMatchObject({ command: "points unpin", sequence: 2, removedPins: 1 });
    await place.json("prune", "--policy", "keep:last=2", "--disk", "a");
    const left = await place.json("points", "list", "--disk", "a");
    expect(left.lines.filter(({ type }) => type === "point").map(({ sequence }) => sequence)).toEqual([5, 6]);
    expect(await place.json("verify")).toMatchObject({ code: 0, last: { checkedPoints: 2, damaged: [] } });
    const again = await place.json("replicate", "a.img", "--disk", "a");
    expect(again.last).toMatchObject({ sequence: 7, newBytes: 0 });
  }, 60_000);

  it("refuses what it cannot do, and says what to write", async () => {
    const place = new Place();
    await place.json("vault", "init");
    expect(await place.json("prune")).toMatchObject({ code: 2, last: { type: "error", code: "INVALID_ARGUMENT" } });
    expect(await place.json("prune", "--policy", "days:99")).toMatchObject({
      code: 2,
      last: { code: "INVALID_ARGUMENT" },
    });
    expect(await place.json("prune", "--policy", "days:1", "--explain", "1")).toMatchObject({ code: 2 });
    expect(await place.json("prune", "--policy", "days:1", "--disk", "nobody")).toMatchObject({
      code: 10,
      last: { code: "DISK_NOT_FOUND" },
    });
    expect(await place.json("points", "pin", "--disk", "a", "--point", "1", "--until", "soon")).toMatchObject({
      code: 2,
    });
    expect(await place.json("prune", "--policy", "days:1")).toMatchObject({
      code: 0,
      last: { removedPoints: 0, disks: [] },
    });
  });
});
