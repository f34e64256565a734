/** The demo, on a small image: the main job from beginning to end, with a real Azurite. */

import { readdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { noKey } from "../encrypted.ts";
import { sameFiles, writeImage } from "./images.ts";
import { Place, parseLines } from "./tidemark.ts";

describe("the demo", () => {
  it("brings two of three points back equal, tells so, and leaves nothing behind", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 12);
    writeImage(place.path("copy.img"), 12);
    const ended = await place.run(["demo", "--image", "a.img", "--json"]);
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    const lines = parseLines(ended.stdout);
    expect(lines.at(-1)).toMatchObject({ type: "summary", command: "demo", equal: true, points: 3, damaged: [] });
    expect(lines.filter(({ type, step }) => type === "step" && step === "back")).toMatchObject([
      { sequence: 1, equal: true },
      { sequence: 3, equal: true },
    ]);
    expect(readdirSync(place.folder).sort()).toEqual(["a.img", "copy.img"]);
    expect(sameFiles(place.path("a.img"), place.path("copy.img"))).toBe(true);
  });

  it("keeps everything with --keep and tells how to go on", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 4);
    const ended = await place.run(["demo", "--image", "a.img", "--keep", "it's kept"]);
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    expect(ended.stdout).toContain("All that came back is equal");
    expect(ended.stdout.split("\n").filter((line) => line.length > 80 && !line.startsWith("  "))).toEqual([]);
    expect(readdirSync(place.path("it's kept")).sort()).toEqual([
      "disk.img",
      "point-1.img",
      "point-3.img",
      "state",
      "vault",
    ]);
    expect(sameFiles(place.path("it's kept/disk.img"), place.path("it's kept/point-3.img"))).toBe(true);
    const listed = await place.run(
      ["points", "list", "--disk", "demo", "--vault", "azurite:it's kept/vault", "--json"],
      noKey,
    );
    expect(parseLines(listed.stdout).at(-1)).toMatchObject({ type: "summary", points: 3 });
    const again = await place.run(["demo", "--keep", "it's kept"]);
    expect(again.code).toBe(2);
  });

  it("refuses an image that is missing or too small to change", async () => {
    const place = new Place();
    writeImage(place.path("nothing.img"), 0);
    expect(await place.run(["demo", "--image", "nothing.img"])).toMatchObject({ code: 2 });
    expect(await place.run(["demo", "--image", "absent.img"])).toMatchObject({ code: 1 });
    expect(readdirSync(place.folder)).toEqual(["nothing.img"]);
  });
});
