/** A target that is brought from one point to another: how often the store is asked for what differs. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import { contentOf, ModelDisk } from "../../../model-disk.ts";
import { Line } from "../../failover/instant-rig.ts";
import { closeVaults, temporaryFolder, vaultOf } from "../mount/mount-rig.ts";

afterAll(closeVaults);

const granules = 160;
const scattered = 25;

test("differences that lie together in the store come together, wherever they lie on the disk", async () => {
  const disk = new ModelDisk(contentOf(granules * granuleBytes, 1));
  const filled = await vaultOf("scattered", disk, 2, () => {
    for (let index = 0; index < scattered; index += 1) {
      const at = Math.floor((index * granules) / scattered) * granuleBytes;
      // Every fifth becomes zeros, which come from the map.
      if (index % 5 === 0) disk.bytes.fill(0, at, at + granuleBytes);
      else contentOf(granuleBytes, 10 + index).copy(disk.bytes, at);
    }
  });
  const line = new Line(filled.sink);
  filled.line.current = line;
  const target = join(temporaryFolder(), "d.img");
  const { failovers } = filled.vault;
  const { run } = await failovers.start({ kind: "unplanned", disks: ["d"], to: `file:${target}`, point: "1" });
  for (const point of [2, 1]) {
    line.ranges = 0;
    const { bytesWritten } = await failovers.changePoint({ run, point: String(point) });
    expect(readFileSync(target).equals(filled.contents[point - 1] ?? Buffer.alloc(0))).toBe(true);
    expect(bytesWritten).toBeLessThan((granules * granuleBytes) / 2);
    if (point === 2) expect(line.ranges).toBeLessThanOrEqual(3);
  }
  await failovers.cancel({ run });
});
