/** `tidemark points label` and `replicate --label`. */
import { expect, it } from "vitest";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("labels points, shows it, and removes it again", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a", "--label", "before the upgrade");
  const { lines } = await place.json("points", "list", "--disk", "a");
  expect(lines[0]).toMatchObject({ type: "point", sequence: 1, label: "before the upgrade" });
  const put = await place.json("points", "label", "--disk", "a", "--point", "1", "--text", "after all");
  expect(put).toMatchObject({
    code: 0,
    last: { type: "summary", command: "points label", sequence: 1, label: "after all" },
  });
  const listed = await place.run(["points", "list", "--disk", "a", "--vault", "dir:vault"]);
  expect(listed.stdout).toMatch(/LABEL/);
  expect(listed.stdout).toMatch(/after all/);
  const shown = await place.run(["points", "show", "--disk", "a", "--vault", "dir:vault"]);
  expect(shown.stdout).toMatch(/label +after all/);
  await place.json("points", "label", "--disk", "a", "--point", "1", "--text", "");
  expect((await place.json("points", "show", "--disk", "a")).last).toMatchObject({ label: null });
  expect(await place.json("points", "label", "--disk", "a", "--point", "1", "--text", "x".repeat(201))).toMatchObject({
    code: 2,
  });
}, 40_000);
