/** `tidemark copy` that is killed with -9 again and again: the next copy goes on, and the points are equal. */
import { setTimeout as delay } from "node:timers/promises";
import { expect } from "vitest";
import { writeImage } from "../cli/images.ts";
import { Place } from "../cli/tidemark.ts";
import { deepTest } from "../deep-test.ts";
import { toKey } from "../encrypted.ts";

const kills = 8;
const points = 4;

deepTest(
  "a copy that is killed goes on, also while both vaults are pruned and collected",
  async () => {
    const place = new Place();
    const copy = ["copy", "--from", "dir:vault", "--to", "dir:second", ...toKey];
    for (let point = 1; point <= points; point += 1) {
      for (const [index, disk] of ["a", "b", "c"].entries()) {
        writeImage(place.path(`${disk}.img`), 10 * point + index);
        await place.json("replicate", `${disk}.img`, "--disk", disk);
      }
    }
    // A first copy says how long one takes; each kill comes at another part of that.
    const beganAt = performance.now();
    expect(await place.run([...copy, "--disk", "a", "--points", "latest"])).toMatchObject({ code: 0 });
    const takesMs = 3 * (performance.now() - beganAt);
    for (let kill = 1; kill <= kills; kill += 1) {
      const running = place.start(copy);
      await delay((takesMs * kill) / kills);
      running.child.kill("SIGKILL");
      await running.ended;
      if (kill % 3 === 0) {
        for (const vault of ["dir:vault", "dir:second"]) {
          expect(await place.run(["prune", "--policy", "keep:last=3", "--vault", vault])).toMatchObject({ code: 0 });
          expect(await place.run(["collect", "--vault", vault])).toMatchObject({ code: 0 });
        }
      }
    }
    expect((await place.run(copy)).code).toBe(0);
    for (const vault of ["dir:vault", "dir:second"])
      expect(await place.run(["verify", "--vault", vault])).toMatchObject({ code: 0 });
    for (const disk of ["a", "b", "c"])
      expect(
        await place.run(["verify", "--disk", disk, "--source", `${disk}.img`, "--vault", "dir:second"]),
      ).toMatchObject({
        code: 0,
      });
  },
  180_000,
);
