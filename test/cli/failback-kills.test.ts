/**
 * kill -9 of real processes over full rounds: planned failover, reprotection, writes, failback. After
 * `jobs resume` the disk has every stamp that was written, at whichever place it is.
 */
import { closeSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect } from "vitest";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { Place } from "./tidemark.ts";

const rounds = 4;
const diskBytes: number = 64 * 1024 * 1024;
const granule = 4096;
const stampsARound = 400;
/** A process needs about 0.7 s before it begins to work, and as long again for a round's work. */
const killAfterMs = [300, 1_500] as const;

// It is a deep test, and a suite without tests is an error.
describe.runIf(byDepth(false, true))("a disk that goes away and comes back", () => {
  deepTest(
    "kill -9 anywhere in a round trip loses no stamp",
    async () => {
      const place = new Place();
      const model = Buffer.alloc(diskBytes);
      let sequence = 0;
      let kills = 0;
      const drawn = lehmer(20_261_129);

      /** Writes stamps to the image: each says where it belongs, and which write it is. */
      function write(name: string): void {
        const file = openSync(place.path(name), "r+");
        for (let index = 0; index < stampsARound; index += 1) {
          const offset = Math.floor((drawn() * diskBytes) / granule) * granule;
          sequence += 1;
          model.fill(`stamp ${sequence} at ${offset}\n`, offset, offset + granule);
          writeSync(file, model, offset, granule, offset);
        }
        closeSync(file);
      }

      /** Starts a verb that makes a run, kills it, and lets the run go on; starts it anew where none was made. */
      async function killed(kind: string, ...words: readonly string[]): Promise<string> {
        const before = await newest(place, kind);
        const process = place.start([...words, "--json"], { TIDEMARK_VAULT: "dir:vault", TIDEMARK_WORKERS: "1" });
        const [least, most] = killAfterMs;
        await Promise.race([delay(least + drawn() * (most - least)), process.ended]);
        process.child.kill("SIGKILL");
        if ((await process.ended).signal === "SIGKILL") kills += 1;
        const run = await newest(place, kind);
        if (run === before || run === undefined) {
          const done = await place.json(...words);
          expect(done).toMatchObject({ code: 0, last: { state: "PlannedFailoverCompleted" } });
          return String(done.last["run"]);
        }
        const shown = await place.json("failover", "show", run);
        if (shown.last["state"] !== "PlannedFailoverCompleted")
          expect(await place.json("jobs", "resume", run)).toMatchObject({
            last: { state: "PlannedFailoverCompleted" },
          });
        return run;
      }

      async function settle(run: string, image: string): Promise<void> {
        expect(readFileSync(place.path(image)).equals(model)).toBe(true);
        expect(await place.json("failover", "commit", run)).toMatchObject({ code: 0 });
        expect(await place.json("reprotect", run)).toMatchObject({ code: 0, last: { state: "Protected" } });
      }

      writeFileSync(place.path("old.img"), model);
      write("old.img");
      await place.json("replicate", "old.img", "--disk", "d");
      for (let round = 0; round < rounds; round += 1) {
        write("old.img");
        rmSync(place.path("new.img"), { force: true });
        const to = ["--to", "file:new.img", "--source", "old.img"];
        const away = await killed("planned", "failover", "planned", "--disk", "d", ...to);
        await settle(away, "new.img");
        write("new.img");
        const back = await killed("failback", "failback", away, "--to", "old.img");
        await settle(back, "old.img");
      }
      expect(kills).toBeGreaterThan(0);
    },
    1_200_000,
  );
});

/** The newest run of a kind. */
async function newest(place: Place, kind: string): Promise<string | undefined> {
  const { lines } = await place.json("failover", "list");
  const found = lines.find((line) => line.type === "run" && line["kind"] === kind);
  return found === undefined ? undefined : String(found["run"]);
}

/** Numbers in [0, 1) that follow from the seed. */
function lehmer(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
}
