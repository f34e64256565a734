// examples/changes.ts: a program that knows what changes; only that is read
import { open } from "node:fs/promises";
import { ChangeTracker, FileVolume, Vault } from "tidemark";
import { openSink } from "tidemark/sink";

const file = await open("web.img", "r+");
const tracker = new ChangeTracker((await file.stat()).size); // or with the id of the point that its list begins at
const sink = await openSink("dir:./vault");
const vault = await Vault.openOrCreate(sink, { stateFolder: "./state" });
try {
  for (const offset of [0, 65_536]) {
    const bytes = new TextEncoder().encode(`written at ${offset}`);
    tracker.markDirty([{ offset, length: bytes.length }]); // before the write is acknowledged
    await file.write(bytes, 0, bytes.length, offset);
    const volume = await FileVolume.open("web.img"); // no program may write to it until the point is committed
    const point = await vault.replicate({ disk: "tracked", volume, changes: tracker });
    console.log(`point ${point.sequence}: ${point.scannedBytes} bytes read`);
    await volume.close();
  }
} finally {
  await vault.close();
  await sink[Symbol.asyncDispose]();
  await file.close();
}
