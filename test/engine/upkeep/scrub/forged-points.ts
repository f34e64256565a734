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
  encodeHead,
  encodeManifest,
  type HeadDocument,
  type ManifestDocument,
  type PointRecord,
  type RunReference,
} from "../../../../engine/store/format/documents.ts";
import { decodeLeaf, type EncodedTable, type EntryColumns, encodeLeaf } from "../../../../engine/store/format/leaf.ts";
import { headName, manifestName, mapName } from "../../../../engine/store/format/names.ts";
import type { MemoryStore } from "../../../../sink/memory.ts";

/** The bytes of a plain object. */
export function objectBytes(store: MemoryStore, name: string): Uint8Array {
  const found = store.objects?.get(name);
  assert(found?.kind === "object", `${name} is an object`);
  return found.bytes;
}

/** Puts other bytes into a plain object, or makes it. */
export function putBytes(store: MemoryStore, name: string, bytes: Uint8Array): void {
  const found = store.objects?.get(name);
  assert(store.objects !== undefined && found?.kind !== "pages", `${name} is no page object`);
  const like = found ?? [...store.objects.values()].find(({ kind }) => kind === "object");
  assert(like?.kind === "object", "the vault has an object");
  store.objects.set(name, { ...like, etag: store.nextEtag(), bytes });
}

/** Vault and disk that the forged documents belong to. */
export interface ForgedDisk {
  readonly store: MemoryStore;
  readonly vault: string;
  readonly disk: string;
}

/** Rewrites a disk's head. What `change` returns needs not be of the right types. */
export function forgeHead({ store, vault, disk }: ForgedDisk, change: (head: HeadDocument) => object): void {
  const name = headName(disk);
  const head = decodeHead(objectBytes(store, name), name, { vault, disk });
  putBytes(store, name, encodeHead(change(head) as HeadDocument));
}

/** Rewrites the manifest of a point that the head itself lists, and the head. */
export function forgeManifest(
  forged: ForgedDisk,
  sequence: number,
  change: (manifest: ManifestDocument) => object,
): void {
  const { store, vault, disk } = forged;
  forgeHead(forged, (head) => {
    const point = head.points.find((one) => one.sequence === sequence);
    assert(point !== undefined, "the head lists the point");
    const name = manifestName(disk, point.sequence, point.epoch);
    const manifest = decodeManifest(objectBytes(store, name), name, { vault, disk, id: point.id });
    const { bytes, id } = encodeManifest(change(manifest) as ManifestDocument);
    putBytes(store, name, bytes);
    const points = head.points.map((one): PointRecord => (one === point ? { ...one, id } : one));
    return { ...head, points };
  });
}

/** Rewrites the leaf of a point whose topmost run is one, its manifest and the head. */
export function forgeLeaf(forged: ForgedDisk, sequence: number, change: (leaf: EntryColumns) => void): void {
  const { store, vault, disk } = forged;
  forgeManifest(forged, sequence, (manifest) => {
    const [run, ...others] = manifest.runs;
    assert(run?.kind === "leaf", "the topmost run is one leaf");
    const name = mapName(disk, run.epoch, run.ordinal);
    const leaf = decodeLeaf(objectBytes(store, name), name, fromHex(vault), fromHex(run.checksum));
    change(leaf);
    const table = encodeLeaf(leaf, fromHex(vault));
    putBytes(store, name, table.bytes);
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
