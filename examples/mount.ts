// examples/mount.ts: read a range of a point without restoring it
import { Vault } from "tidemark";
import { openSink } from "tidemark/sink";

const sink = await openSink("dir:./vault");
const vault = await Vault.open(sink, { stateFolder: "./state" });
try {
  const mount = await vault.mount({ disk: "memory", point: "latest" }); // held against pruning until it is closed
  const range = new Uint8Array(4096);
  await mount.device.read(1024 * 1024, range); // fetched, verified, cached
  console.log(
    `point ${mount.point.sequence} holds ${mount.device.sizeBytes} bytes; at 1 MiB stands ${range[0] ?? "nothing"}`,
  );
  await mount.close();
} finally {
  await vault.close();
  await sink[Symbol.asyncDispose]();
}
