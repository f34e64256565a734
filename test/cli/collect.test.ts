/** `tidemark collect`, as a user meets it. */
import { describe, expect, it } from "vitest";
import { changeImage, writeImage } from "./images.ts";
import { Place, parseLines } from "./tidemark.ts";

const mebibyte = 1024 * 1024;

/**
 * A place with a vault of three points, each of which has the first MiB anew, and of which the
 * first two are dropped.
 */
async function pruned(): Promise<{ readonly place: Place; readonly vault: readonly string[] }> {
  const place = new Place();
  const vault = ["--vault", "dir:v"];
  writeImage(place.path("disk.img"), 2);
  for (let point = 0; point < 3; point += 1) {
    changeImage(place.path("disk.img"), 0, Buffer.alloc(mebibyte, `content ${point}, ${Math.sin(point)}`));
    expect(await place.run(["replicate", "disk.img", "--disk", "d", ...vault])).toMatchObject({ code: 0 });
  }
  expect(await place.run(["prune", "--policy", "keep:last=1", ...vault])).toMatchObject({ code: 0 });
  return { place, vault };
}

describe("tidemark collect", () => {
  it("gives space back once, and every point that is left can be read", async () => {
    const { place, vault } = await pruned();
    const tried = await place.run(["collect", "--dry-run", ...vault]);
    expect(tried).toMatchObject({ code: 0 });
    expect(tried.stdout).toMatch(/would be freed/);
    const done = await place.run(["collect", "--json", ...vault]);
    const summary = parseLines(done.stdout).at(-1);
    expect(summary).toMatchObject({ type: "summary", command: "collect", waitingFor: [] });
    expect(Number(summary?.["condemnedChunks"])).toBeGreaterThan(0);
    expect(Number(summary?.["storedBytesAfter"])).toBeLessThan(Number(summary?.["storedBytesBefore"]));
    const again = parseLines((await place.run(["collect", "--json", ...vault])).stdout).at(-1);
    expect(again).toMatchObject({ condemnedChunks: 0, storedBytesBefore: summary?.["storedBytesAfter"] });
    const verified = await place.run(["verify", "--disk", "d", "--source", "disk.img", ...vault]);
    expect(verified).toMatchObject({ code: 0 });
  });

  it("refuses a time that is none, and a vault that is not there", async () => {
    const place = new Place();
    expect(await place.run(["collect", "--wait", "soon", "--vault", "dir:v"])).toMatchObject({ code: 2 });
    expect(await place.run(["collect", "--vault", "dir:v"])).toMatchObject({ code: 10 });
  });
});
