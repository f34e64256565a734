/** `tidemark vault stats`: its JSON and its table. */
import { expect, it } from "vitest";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("counts what a vault takes, as JSON and as a table", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  for (const disk of ["a", "b"]) await place.json("replicate", "a.img", "--disk", disk);
  const { code, last } = await place.json("vault", "stats");
  expect(code).toBe(0);
  expect(last).toMatchObject({ type: "summary", command: "vault stats", points: 2 });
  const disks = last["disks"] as readonly Readonly<Record<string, number | string>>[];
  expect(disks).toMatchObject([
    { disk: "a", points: 1 },
    { disk: "b", points: 1 },
  ]);
  for (const counts of [last, ...disks]) {
    for (const name of ["logicalBytes", "uniqueBytes", "storedBytes", "metadataBytes"])
      expect(counts[name]).toBeGreaterThan(0);
  }
  // Both disks are the same image.
  expect(last["uniqueBytes"]).toBe(disks[0]?.["uniqueBytes"]);
  expect(last["logicalBytes"]).toBe(Number(disks[0]?.["logicalBytes"]) * 2);
  const { stdout } = await place.run(["vault", "stats", "--vault", "dir:vault"]);
  expect(stdout).toMatch(/^DISK +POINTS +LOGICAL +UNIQUE +STORED +RATIO +METADATA\na +1 /);
  expect(stdout).toMatch(/\n\(in all\) +2 /);
}, 30_000);
