/**
 * Instant targets: a point that runs at once, is copied into a local image while it runs, and needs
 * the vault no more when that is done.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { FaultySink } from "../../../sink/faults.ts";
import { closeVaults, filledVault, readAll, temporaryFolder } from "../recovery/mount/mount-rig.ts";
import { openInstant } from "./instant-rig.ts";

afterAll(closeVaults);

describe("an instant target", () => {
  test("is the point at once, and its image is the point when it is hydrated, without the vault", async () => {
    const filled = await filledVault();
    const image = join(temporaryFolder(), "d.img");
    const { instant, notices } = await openInstant(filled, { image });
    expect((await readAll(instant.device)).equals(filled.contents[2] ?? Buffer.alloc(0))).toBe(true);
    await instant.hydrated();
    expect(instant.status()).toMatchObject({ state: "hydrated", sequence: 3, hydratedBytes: 400_001, trouble: null });
    expect(notices).toEqual([]);
    await instant.close();
    expect(readFileSync(image).equals(filled.contents[2] ?? Buffer.alloc(0))).toBe(true);
    const away = new FaultySink(filled.sink, []);
    const again = await openInstant(filled, { image }, away);
    expect((await readAll(again.instant.device)).equals(filled.contents[2] ?? Buffer.alloc(0))).toBe(true);
    expect(away.calls).toEqual([]);
  });
});
