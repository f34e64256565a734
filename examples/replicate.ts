// examples/replicate.ts: replicate a volume of this program, list its points, restore one
import { hasCode, Vault, type Volume } from "tidemark";
import { openSink } from "tidemark/sink";

// Anything that has a size and can be read is a volume.
const bytes = new Uint8Array(8 * 1024 * 1024).fill(7);
const volume: Volume = {
  description: "a disk in memory",
  sizeBytes: async () => bytes.length,
  read: async (offset, into) => {
    into.set(bytes.subarray(offset, offset + into.length));
  },
  endScan: async () => "crash", // nothing wrote to it while it was read
};

const sink = await openSink("dir:./vault");
const vault = await Vault.openOrCreate(sink, { stateFolder: "./state" });
try {
  const point = await vault.replicate({
    disk: "memory",
    volume,
    onProgress: ({ doneBytes, totalBytes }) => console.log(`${doneBytes} of ${totalBytes}`),
  });
  console.log(`point ${point.sequence}: ${point.newBytes} new bytes, stored as ${point.storedBytes}`);
  for (const { sequence, time, consistency } of await vault.points("memory")) console.log(sequence, time, consistency);
  await vault.materialize({ disk: "memory", point: "latest", to: "back.img", mode: "replace" });
} catch (error) {
  if (hasCode(error, "WRITER_ACTIVE")) console.log("another writer is replicating this disk");
  else throw error;
} finally {
  await vault.close();
  await sink[Symbol.asyncDispose]();
}
