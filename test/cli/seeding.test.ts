/** Offline seeding: a first point that travels as an image, and a source that goes on with differences. */
import { readFileSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it.each(["raw", "vhd"])("a %s seed at the target side becomes the first point", async (format) => {
  const place = new Place();
  writeImage(place.path("web.img"), 4);
  await place.json("replicate", "web.img", "--disk", "web", "--vault", "dir:here");
  const seed = ["materialize", "--disk", "web", "--point", "1", "--to", "seed", "--format", format];
  expect(await place.json(...seed, "--vault", "dir:here")).toMatchObject({ code: 0 });
  const bytes = readFileSync(place.path("web.img"));
  const footerBytes = readFileSync(place.path("seed")).length - bytes.length;
  expect(footerBytes).toBe(format === "vhd" ? 512 : 0);

  const arrived = await place.json("replicate", "seed", "--disk", "web");
  expect(arrived.last).toMatchObject({ sequence: 1, volumeBytes: bytes.length });
  expect(await place.json("verify", "--disk", "web", "--source", "seed")).toMatchObject({ code: 0 });
  // A planned failover takes its last point of the image, too.
  const moved = await place.json("failover", "planned", "--disk", "web", "--source", "seed", "--to", "file:moved.img");
  expect(moved).toMatchObject({ code: 0 });
  expect(readFileSync(place.path("moved.img")).equals(bytes)).toBe(true);
  expect(await place.json("failover", "cancel", String(moved.last["run"]))).toMatchObject({ code: 0 });
  bytes.fill(7, 8192, 8200);
  writeFileSync(place.path("web.img"), bytes);
  const next = await place.json("replicate", "web.img", "--disk", "web");
  expect(next.last).toMatchObject({ sequence: 3, changedBytes: 4096, newBytes: 4096, volumeBytes: bytes.length });
});

it("refuses a VHD whose disk does not lie in it as it is", async () => {
  const place = new Place();
  const footer = Buffer.alloc(512);
  footer.write("conectix", 0, "latin1");
  footer.writeUInt32BE(3, 60);
  writeFileSync(place.path("dynamic.vhd"), Buffer.concat([footer, Buffer.alloc(4096), footer]));
  const refused = await place.json("replicate", "dynamic.vhd", "--disk", "web");
  expect(refused).toMatchObject({
    last: { code: "UNSUPPORTED", remedy: expect.stringContaining("qemu-img") as string },
  });
});
