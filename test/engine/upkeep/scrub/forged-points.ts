/**
 * Points that no writer makes: documents and map objects of a vault in memory are changed, and every
 * checksum on the way to the head is made right again. A writer of the vault with bad intent, or a
 * fault in a writer, can leave such points.
 */
import assert from "node:assert/strict";
import { fromHex, toHex } from "../../../../engine/store/format/checksum.ts";
import {
  decodeHead,
  decodeManifest,
  documentBytesMax,
  encodeHead,
  encodeManifest,
  type HeadDocument,
  type ManifestDocument,
  type PointRecord,
  type RunReference,
} from "../../../../engine/store/format/documents.ts";
import { decodeLeaf, type EncodedTable, type EntryColumns, encodeLeaf } from "../../../../engine/store/format/leaf.ts";
import { headName, manifestName, mapName } from "../../../../engine/store/format/names.ts";
import { MemorySink, type MemoryStore } from "../../../../sink/memory.ts";
import { modelSink } from "../../../model-disk.ts";

/** The bytes of an object, in plain. */
export async function objectBytes(store: MemoryStore, name: string): Promise<Uint8Array> {
  return (await (await modelSink(new MemorySink({ store }))).getObject(name, documentBytesMax)).bytes;
}

/** Puts other bytes into an object, or makes it. */
export async function putBytes(store: MemoryStore, name: string, bytes: Uint8Array): Promise<void> {
  store.objects?.delete(name);
  await (await modelSink(new MemorySink({ store }))).putObject(name, bytes, { ifAbsent: true });
}

/** Vault and disk that the forged documents belong to. */
export interface ForgedDisk {
  readonly store: MemoryStore;
  readonly vault: string;
  readonly disk: string;
}

/** Rewrites a disk's head. What `change` returns needs not be of the right types. */
export async function forgeHead(
  { store, vault, disk }: ForgedDisk,
  change: (head: HeadDocument) => object | Promise<object>,
): Promise<void> {
  const name = headName(disk);
  const head = decodeHead(await objectBytes(store, name), name, { vault, disk });
  await putBytes(store, name, encodeHead((await change(head)) as HeadDocument));
}

/** Rewrites the manifest of a point that the head itself lists, and the head. */
export async function forgeManifest(
  forged: ForgedDisk,
  sequence: number,
  change: (manifest: ManifestDocument) => object | Promise<object>,
): Promise<void> {
  const { store, vault, disk } = forged;
  await forgeHead(forged, async (head) => {
    const point = head.points.find((one) => one.sequence === sequence);
    assert(point !== undefined, "the head lists the point");
    const name = manifestName(disk, point.sequence, point.epoch);
    const manifest = decodeManifest(await objectBytes(store, name), name, { vault, disk, id: point.id });
    const { bytes, id } = encodeManifest((await change(manifest)) as ManifestDocument);
    await putBytes(store, name, bytes);
    const points = head.points.map((one): PointRecord => (one === point ? { ...one, id } : one));
    return { ...head, points };
  });
}

/** Rewrites the leaf of a point whose topmost run is one, its manifest and the head. */
export async function forgeLeaf(
  forged: ForgedDisk,
  sequence: number,
  change: (leaf: EntryColumns) => void,
): Promise<void> {
  const { store, vault, disk } = forged;
  await forgeManifest(forged, sequence, async (manifest) => {
    const [run, ...others] = manifest.runs;
    assert(run?.kind === "leaf", "the topmost run is one leaf");
    const name = mapName(disk, run.epoch, run.ordinal);
    const leaf = decodeLeaf(await objectBytes(store, name), name, fromHex(vault), fromHex(run.checksum));
    change(leaf);
    const table = encodeLeaf(leaf, fromHex(vault));
    await putBytes(store, name, table.bytes);
    return { ...manifest, runs: [runOf(run, table, { entries: leaf.count }), ...others] };
  });
}

/** A reference to a run of other bytes. */
export function runOf(
  run: RunReference,
  { bytes, checksum }: EncodedTable,
  counts: Partial<RunReference> = {},
): RunReference {
  return { ...run, bytes: bytes.byteLength, checksum: toHex(checksum), totalBytes: bytes.byteLength, ...counts };
}
