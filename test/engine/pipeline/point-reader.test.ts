/** How far the reader of a point runs ahead of the consumer of what it reads. */
import { setImmediate } from "node:timers/promises";
import { expect, test } from "vitest";
import { PointReader } from "../../../engine/pipeline/point-reader.ts";
import { fetchGeometry, scanGeometry } from "../../../engine/pipeline/slabs.ts";
import { WorkerPool } from "../../../engine/pipeline/worker-pool.ts";
import { PointMap, windowGranules } from "../../../engine/store/map/point-map.ts";
import { openMemory, vaultId } from "../../engine-model.ts";
import { modelBlockBytes } from "../../model-disk.ts";

test("a disk with nothing on it is read no faster than its zeros are taken", async () => {
  const { store } = await openMemory();
  const windows = 1000;
  const workerPool = WorkerPool.open({
    geometry: scanGeometry,
    fetchGeometry,
    blockBytes: modelBlockBytes,
    digest: "blake3",
    digestKey: new Uint8Array(32),
    workers: 1,
  });
  try {
    const reader = new PointReader({ store, workerPool });
    const map = new PointMap(store, vaultId, "d", { volumeBytes: windows * windowGranules * 4096, runs: [] });
    let told = 0;
    let open: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    const reading = reader.read(map, 0, {
      data: () => Promise.reject(new Error("there is no data")),
      zeros: () => {
        told += 1;
        return Promise.resolve();
      },
      done: () => gate,
    });
    for (let turn = 0; turn < 200; turn += 1) await setImmediate();
    expect(told).toBeLessThan(20);
    open();
    await reading;
    expect(told).toBe(windows);
  } finally {
    await workerPool.close();
  }
});
