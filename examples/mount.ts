// examples/mount.ts: read a point without restoring it: a range, a stream, and what the vault holds
import { createHash } from "node:crypto";
import { Vault } from "tidemark";
import { openSink } from "tidemark/sink";

const sink = await openSink("dir:./vault");
const vault = await Vault.open(sink, { stateFolder: "./state" });
try {
  const point = await vault.openPoint({ disk: "memory", point: "latest" }); // held against pruning until it is closed
  const range = new Uint8Array(4096);
  await point.read(1024 * 1024, range); // fetched, verified, cached
  const hash = createHash("sha256");
  for await (const piece of point.stream()) hash.update(piece); // or point.readable(), a Node stream
  await point.close();
  console.log(`${point.sizeBytes} bytes, at 1 MiB stands ${range[0] ?? "nothing"}, SHA-256 ${hash.digest("hex")}`);

  const first = (await vault.points("memory"))[0]?.sequence ?? 1;
  for await (const { offset, length } of await vault.diff({ disk: "memory", from: String(first), to: "latest" }))
    console.log(`bytes ${offset} to ${offset + length} differ from point ${first}`);

  const { uniqueBytes, storedBytes } = await vault.stats();
  console.log(`${uniqueBytes} unique bytes, stored in ${storedBytes}`);
} finally {
  await vault.close();
  await sink[Symbol.asyncDispose]();
}
