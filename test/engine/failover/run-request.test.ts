/** How the job of another process is stopped. */
import { expect, test } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import { stopJob } from "../../../engine/failover/run-request.ts";
import { runRequestName } from "../../../engine/store/format/names.ts";
import { openMemory } from "../../engine-model.ts";
import { namesIn } from "../../sink/expectations.ts";

test("a request that comes after the worker has obeyed is removed", async () => {
  const { sink, store } = await openMemory();
  const place = { store, vault: "a".repeat(32) };
  const worked = { run: "0123abcd", epoch: 1 };
  const looks = [worked, worked, undefined];
  let ends = 0;
  const end = async (): Promise<void> => {
    ends += 1;
    // The worker obeys the first request, removes it, and has not let go of the run.
    if (ends > 1) await sink.deleteObject(runRequestName(worked.run));
    throw new TidemarkError("WRITER_ACTIVE", "another process works on the run");
  };
  expect(await stopJob(place, async () => await Promise.resolve(looks.shift()), end)).toBe(true);
  expect(ends).toBe(2);
  expect(await namesIn(sink, "failover/requests/")).toEqual([]);
});
