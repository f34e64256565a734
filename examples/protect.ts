// examples/protect.ts: protect an image, serve it over NBD, write to it, take points
import { NbdServer, Vault } from "tidemark";
import { openSink } from "tidemark/sink";

const sink = await openSink("dir:./vault");
const vault = await Vault.openOrCreate(sink, { stateFolder: "./state" });
try {
  const protection = await vault.protect({
    disk: "web",
    image: "web.img",
    stateFolder: "./state",
    policy: { crashConsistentFrequencyMs: 5_000, recoveryPointThresholdMs: 60_000 },
    onEvent: ({ kind, message }) => console.log(`${kind}: ${message}`),
  });
  const server = await NbdServer.listen({ listen: { kind: "unix", path: "web.sock" } });
  server.addExport({ name: "web", device: protection.device }); // nbd+unix:///web?socket=web.sock
  await protection.point(); // the first point holds the whole disk
  await protection.device.write(4096, new TextEncoder().encode("written while it is protected"));
  const { sequence, consistency, changedBytes } = await protection.point();
  console.log(`point ${sequence}, ${consistency}: ${changedBytes} bytes changed`);
  await server.close(); // clients first
  await protection.stop({ drain: true }); // a last point, then the exact marks are saved
} finally {
  await vault.close();
  await sink[Symbol.asyncDispose]();
}
