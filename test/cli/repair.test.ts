/**
 * `tidemark verify --heal` and `tidemark vault repair`: what they say, what they do, and their exit
 * codes.
 */
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { DirectorySink } from "../../sink/directory.ts";
import { changeImage, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

const pagesAt = 4096;

/** Two points of disk `a` in the vault, and their image. */
async function prepared(): Promise<Place> {
  const place = new Place();
  writeImage(place.path("a.img"), 3);
  await place.json("replicate", "a.img", "--disk", "a");
  changeImage(place.path("a.img"), 1_000_000, Buffer.alloc(4096, 9));
  await place.json("replicate", "a.img", "--disk", "a");
  return place;
}

/** Inverts bytes of the first segment's file. */
function damage(place: Place, offset: number, length: number): void {
  const folder = place.path("vault/segments/a");
  const file = openSync(join(folder, readdirSync(folder).sort()[0] ?? ""), "r+");
  const bytes = Buffer.alloc(length);
  readSync(file, bytes, 0, length, pagesAt + offset);
  writeSync(
    file,
    bytes.map((byte) => byte ^ 0xff),
    0,
    length,
    pagesAt + offset,
  );
  closeSync(file);
}

describe("verify --heal", () => {
  it("heals from the image that still holds what is damaged, and says so", async () => {
    const place = await prepared();
    damage(place, 200, 50);
    expect((await place.json("verify")).code).toBe(3);
    const { code, lines, last } = await place.json("verify", "--disk", "a", "--source", "a.img", "--heal");
    expect(code).toBe(0);
    expect(lines.filter(({ type }) => type === "damage")).toMatchObject([{ disk: "a", healed: true }]);
    expect(last).toMatchObject({ type: "summary", checkedPoints: 2 });
    expect(await place.json("verify")).toMatchObject({ code: 0, last: { damaged: [] } });
    const points = await place.json("points", "list", "--disk", "a");
    for (const point of points.lines.slice(0, 2)) expect(point["proved"]).toEqual(expect.stringMatching(/Z$/));
  });

  it("ends with 3 for what no disk and no chunk holds any more", async () => {
    const place = await prepared();
    damage(place, 200, 50);
    const { code, lines } = await place.json("verify", "--heal");
    expect(code).toBe(3);
    const told = lines.filter(({ type }) => type === "damage");
    expect(told.map((line) => line["sequence"])).toEqual([2, 1]);
    for (const line of told)
      expect(line["message"]).toContain("it could not be healed: neither a source nor another chunk");
  });
});

describe("vault repair", () => {
  it("says that there is nothing to repair", async () => {
    const place = await prepared();
    expect(await place.json("vault", "repair")).toMatchObject({
      code: 0,
      last: { type: "summary", command: "vault repair", repaired: [], lost: [] },
    });
    const ended = await place.run(["vault", "repair", "--vault", "dir:vault"]);
    expect(ended.stdout).toContain("nothing to repair: 1 disk, 2 points examined");
  });

  it("rebuilds a head that is gone, after it has said what it would do", async () => {
    const place = await prepared();
    rmSync(place.path("vault/disks/a/head"));
    const tried = await place.json("vault", "repair", "--dry-run");
    expect(tried).toMatchObject({ code: 0, last: { dryRun: true, points: 2 } });
    expect(await place.json("points", "list", "--disk", "a")).toMatchObject({
      code: 3,
      last: { remedy: expect.stringContaining("vault repair") as string },
    });
    // A cycle without its head is not begun again, so no note says that it is.
    const cycle = await place.json("replicate", "a.img", "--disk", "a");
    expect(cycle).toMatchObject({ code: 3, lines: [{ type: "error", code: "DAMAGED" }] });
    const done = await place.json("vault", "repair");
    expect(done.lines).toMatchObject([
      { type: "repaired", disk: "a", object: "disks/a/head", kind: "head" },
      { type: "summary", lost: [] },
    ]);
    expect((await place.json("points", "list", "--disk", "a")).last).toMatchObject({ points: 2 });
    expect((await place.json("verify")).code).toBe(0);
    expect((await place.json("replicate", "a.img", "--disk", "a")).last).toMatchObject({
      sequence: 3,
      changedBytes: 0,
    });
  });

  it("puts back a vault.json that is gone, which every other command asks for", async () => {
    const place = await prepared();
    const file = place.path("vault/vault.json");
    const before = readFileSync(file, "utf8");
    rmSync(file);
    const remedy = expect.stringContaining("tidemark vault repair") as string;
    for (const words of [
      ["vault", "init"],
      ["points", "list", "--disk", "a"],
      ["replicate", "a.img", "--disk", "b"],
    ]) {
      expect(await place.json(...words)).toMatchObject({ code: 3, last: { type: "error", code: "DAMAGED", remedy } });
    }
    const tried = await place.run(["vault", "repair", "--dry-run", "--vault", "dir:vault"]);
    expect(tried.stdout).toContain(
      "would be rebuilt: the vault: vault.json is gone; rewritten with the identity of vault",
    );
    expect(existsSync(file)).toBe(false);
    const done = await place.json("vault", "repair");
    expect(done).toMatchObject({
      code: 0,
      lines: [{ type: "repaired", disk: null, object: "vault.json", kind: "vault" }, { lost: [] }],
    });
    expect(readFileSync(file, "utf8")).toBe(before);
  });

  it("tells what is rebuilt also when it ends in an error", async () => {
    const place = await prepared();
    await place.json("replicate", "a.img", "--disk", "z");
    for (const disk of ["a", "z"]) truncateSync(place.path(`vault/disks/${disk}/head`), 100);
    // The holder of the lease of a head writes the disk.
    const sink = await DirectorySink.open(place.path("vault"));
    await sink.acquireLease("disks/a/head", "00000000-0000-4000-8000-000000000000", 60);
    const { code, lines } = await place.json("vault", "repair");
    expect(code).toBe(11);
    expect(lines).toMatchObject([
      { type: "repaired", disk: "z" },
      { type: "error", code: "WRITER_ACTIVE", detail: { disk: "a" } },
    ]);
    await sink[Symbol.asyncDispose]();
  });

  it("names what cannot be saved and ends with 3", async () => {
    const place = await prepared();
    const folder = place.path("vault/disks/a/points");
    truncateSync(join(folder, readdirSync(folder).sort()[0] ?? ""), 100);
    const { code, lines } = await place.json("vault", "repair");
    expect(code).toBe(3);
    expect(lines).toMatchObject([
      { type: "lost", disk: "a", points: [1] },
      { type: "summary", repaired: [] },
    ]);
    const ended = await place.run(["vault", "repair", "--vault", "dir:vault"]);
    expect(ended.stdout).toContain("lost: disk a: point 1 is lost, because its manifest cannot be rebuilt");
  });
});
