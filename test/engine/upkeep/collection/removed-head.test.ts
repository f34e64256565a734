/** A head that cannot be read, of a disk that was removed: it stops a collection, and there is a way on. */
import { afterEach, expect, test } from "vitest";
import { headName } from "../../../../engine/store/format/names.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { closeModelVaults, modelStore, openModelVault, sampleDisk } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";

afterEach(closeModelVaults);

test.each([true, false])(
  "is rebuilt by `vault repair`, also when its points have been collected (%j)",
  async (before) => {
    const sink = new MemorySink();
    const vault = await openModelVault(sink);
    const disk = sampleDisk(150_000, 1);
    for (const name of ["gone", "stays"]) await vault.replicate({ disk: name, volume: disk });
    await vault.removeDisk({ disk: "gone" });
    if (before) await vault.collect();
    const store = await modelStore(sink);
    const { etag } = await store.get(headName("gone"), 1_000_000);
    await store.put(headName("gone"), new TextEncoder().encode("damaged"), { ifMatch: etag });

    const error = await expectCode(vault.collect(), "DAMAGED");
    expect(error.remedy).toContain("`tidemark vault repair`");
    const { repaired, lost } = await vault.repair();
    expect({ repaired: repaired.map(({ object }) => object), lost }).toEqual({
      repaired: [headName("gone")],
      lost: [],
    });
    // Points that were not collected yet come back, and the removal is repeated.
    expect((await vault.disks()).map(({ disk: name }) => name)).toEqual(before ? ["stays"] : ["gone", "stays"]);
    if (!before) await vault.removeDisk({ disk: "gone" });
    expect((await vault.collect()).waitingFor).toEqual([]);
    await vault.replicate({ disk: "gone", volume: disk });
    for (const name of ["gone", "stays"])
      expect((await vault.verify({ disk: name, source: disk })).damaged).toEqual([]);
  },
);
