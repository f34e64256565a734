/** `tidemark points diff`: its JSON and its table. */
import { expect, it } from "vitest";
import { changeImage, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("shows the extents in which two points differ, and their total", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  changeImage(place.path("a.img"), 40_960, Buffer.from("changed"));
  await place.json("replicate", "a.img", "--disk", "a");
  const { code, lines, last } = await place.json("points", "diff", "--disk", "a", "--from", "1", "--to", "latest");
  expect(code).toBe(0);
  expect(lines.filter(({ type }) => type === "extent")).toEqual([{ type: "extent", offset: 40_960, length: 4096 }]);
  expect(last).toMatchObject({
    type: "summary",
    command: "points diff",
    disk: "a",
    from: { sequence: 1 },
    to: { sequence: 2 },
    extents: 1,
    differingBytes: 4096,
  });
  const { stdout } = await place.run([
    "points",
    "diff",
    "--disk",
    "a",
    "--from",
    "2",
    "--to",
    "1",
    "--vault",
    "dir:vault",
  ]);
  expect(stdout).toBe("OFFSET  LENGTH\n40,960   4,096\npoints 2 and 1 of disk a differ in 1 extent, 4 KiB\n");
  const same = await place.run(["points", "diff", "--disk", "a", "--from", "2", "--to", "2", "--vault", "dir:vault"]);
  expect(same.stdout).toBe("points 2 and 2 of disk a are the same\n");
  expect(await place.json("points", "diff", "--disk", "a", "--from", "1", "--to", "9")).toMatchObject({ code: 10 });
}, 40_000);
