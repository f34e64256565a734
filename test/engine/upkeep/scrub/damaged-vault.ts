/**
 * Segments that are spoiled behind everybody's back: of a vault in memory byte by byte, of any
 * vault by damage that is drawn at random.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { pageAlignmentBytes, type Sink } from "../../../../engine/sink.ts";
import { parseSegmentName } from "../../../../engine/store/format/names.ts";
import type { Vault } from "../../../../engine/vault.ts";
import type { MemoryStore } from "../../../../sink/memory.ts";
import { isEncryptedRun } from "../../../encrypted.ts";
import { storedName } from "./tamper.ts";

const storedPageBytes = 64 * 1024;

/** What lies at [offset, offset + length) of a page object. */
export function storedBytes(store: MemoryStore, segment: string, offset: number, length: number): Buffer {
  const name = storedName(store, segment);
  const found = store.objects?.get(name);
  assert(found?.kind === "pages", `${name} is a page object`);
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const inPage = (offset + at) % storedPageBytes;
    const part = Math.min(length - at, storedPageBytes - inPage);
    bytes.set(
      found.pages.get(Math.floor((offset + at) / storedPageBytes))?.subarray(inPage, inPage + part) ??
        new Uint8Array(part),
      at,
    );
    at += part;
  }
  return bytes;
}

/** Puts other bytes into a page object. */
export function spoil(store: MemoryStore, segment: string, offset: number, bytes: Uint8Array): void {
  const name = storedName(store, segment);
  const found = store.objects?.get(name);
  assert(found?.kind === "pages", `${name} is a page object`);
  for (let at = 0; at < bytes.length; ) {
    const index = Math.floor((offset + at) / storedPageBytes);
    const inPage = (offset + at) % storedPageBytes;
    const length = Math.min(bytes.length - at, storedPageBytes - inPage);
    const page = Uint8Array.from(found.pages.get(index) ?? new Uint8Array(storedPageBytes));
    page.set(bytes.subarray(at, at + length), inPage);
    found.pages.set(index, page);
    at += length;
  }
  store.objects?.set(name, { ...found, etag: store.nextEtag() });
}

/** Inverts the bytes at [offset, offset + length). */
export function invert(store: MemoryStore, name: string, offset: number, length = 1): void {
  spoil(
    store,
    name,
    offset,
    storedBytes(store, name, offset, length).map((byte) => byte ^ 0xff),
  );
}

/** Names and written lengths of all segments, sorted. */
export function segmentsOf(store: MemoryStore): readonly { readonly name: string; readonly writtenBytes: number }[] {
  const segments: { readonly name: string; readonly writtenBytes: number }[] = [];
  for (const [name, stored] of store.objects ?? []) {
    if (stored.kind === "pages" && parseSegmentName(name) !== undefined)
      segments.push({ name, writtenBytes: stored.writtenBytes });
  }
  return segments.sort((a, b) => a.name.localeCompare(b.name));
}

/** Every segment with what is written in it. */
export function contentOfSegments(store: MemoryStore): Map<string, Buffer> {
  return new Map(segmentsOf(store).map(({ name, writtenBytes }) => [name, storedBytes(store, name, 0, writtenBytes)]));
}

/** Names of the segments that hold something else than they did. */
export function changedSegments(store: MemoryStore, before: ReadonlyMap<string, Buffer>): string[] {
  const now = contentOfSegments(store);
  return [...before].filter(([name, bytes]) => now.get(name)?.equals(bytes) !== true).map(([name]) => name);
}

/**
 * Fails unless segments hold what they held. In an encrypted run a healed payload is sealed with
 * another nonce, so there every chunk has to be proved.
 */
export async function expectRestored(
  vault: Vault,
  store: MemoryStore,
  whole: ReadonlyMap<string, Buffer>,
): Promise<void> {
  if (isEncryptedRun) assert.deepEqual((await vault.verify()).damaged, []);
  else assert.deepEqual(changedSegments(store, whole), []);
}

/** Damage to one segment. */
export interface Damaging {
  /** Which one, in the order of names; counted round. */
  readonly segment: number;
  /** Where, as a part of what was written. */
  readonly at: number;
  readonly length: number;
  /** `cut`: the object ends there. `removed`: it is gone. */
  readonly how: "inverted" | "zeroed" | "cut" | "removed";
}

/** Up to `countMax` damages, most of them to a few bytes. */
export function damagings(countMax: number): fc.Arbitrary<Damaging[]> {
  const how = fc.oneof(
    { weight: 6, arbitrary: fc.constantFrom("inverted" as const, "zeroed" as const) },
    { weight: 1, arbitrary: fc.constantFrom("cut" as const, "removed" as const) },
  );
  const at = fc.double({ min: 0, max: 1, noNaN: true });
  return fc.array(fc.record({ segment: fc.nat(), at, length: fc.integer({ min: 1, max: 5_000 }), how }), {
    minLength: 1,
    maxLength: countMax,
  });
}

/** A run of bytes of a segment. */
export interface SpoiledRange {
  readonly segment: string;
  readonly from: number;
  readonly end: number;
}

/** Names of the segments, sorted, with how far they were written. */
export async function writtenSegments(
  sink: Sink,
): Promise<readonly { readonly name: string; readonly writtenBytes: number }[]> {
  const found: { readonly name: string; readonly writtenBytes: number }[] = [];
  for await (const { name } of sink.list("segments/")) {
    if (parseSegmentName(name) !== undefined)
      found.push({ name, writtenBytes: (await sink.statPages(name)).writtenBytes });
  }
  return found.sort((a, b) => a.name.localeCompare(b.name));
}

/**
 * Damages segments of any store as one that lies would. `cut` makes an object of the store end at a
 * place; by default it is made anew with what is left of it. Returns the bytes that have another
 * value now, or none.
 */
export async function sprinkle(
  sink: Sink,
  damages: readonly Damaging[],
  cut: (name: string, sizeBytes: number) => Promise<void> = async (name, sizeBytes) => {
    await cutPages(sink, name, sizeBytes);
  },
): Promise<readonly SpoiledRange[]> {
  const spoiled: SpoiledRange[] = [];
  const segments = await writtenSegments(sink);
  const ends = new Map(segments.map(({ name, writtenBytes }) => [name, writtenBytes]));
  for (const { segment, at, length, how } of damages) {
    const { name, writtenBytes } = segments[segment % segments.length] ?? { name: "", writtenBytes: 0 };
    const endNow = ends.get(name) ?? 0;
    const from = Math.min(Math.floor(at * writtenBytes), writtenBytes - 1);
    if (from >= endNow) continue; // it is gone already
    if (how === "inverted" || how === "zeroed") {
      spoiled.push(...(await spoilPages(sink, name, from, Math.min(from + length, endNow), how)));
      continue;
    }
    const end = how === "removed" ? 0 : from - (from % pageAlignmentBytes);
    if (how === "removed") await sink.deleteObject(name);
    else await cut(name, end);
    ends.set(name, end);
    spoiled.push({ segment: name, from: end, end: Infinity });
  }
  return spoiled;
}

async function spoilPages(
  sink: Sink,
  segment: string,
  from: number,
  end: number,
  how: "inverted" | "zeroed",
): Promise<SpoiledRange[]> {
  const first = from - (from % pageAlignmentBytes);
  const pages = new Uint8Array(Math.ceil(end / pageAlignmentBytes) * pageAlignmentBytes - first);
  await sink.readPages(segment, first, pages);
  const changed: SpoiledRange[] = [];
  for (let at = from; at < end; at += 1) {
    const before = pages[at - first] ?? 0;
    pages[at - first] = how === "inverted" ? before ^ 0xff : 0;
    if (pages[at - first] !== before) changed.push({ segment, from: at, end: at + 1 });
  }
  const { sequenceNumber } = await sink.statPages(segment);
  await sink.writePages(segment, first, pages, { sequenceNumber });
  return changed;
}

async function cutPages(sink: Sink, name: string, sizeBytes: number): Promise<void> {
  const { sequenceNumber } = await sink.statPages(name);
  const left = new Uint8Array(sizeBytes);
  if (sizeBytes > 0) await sink.readPages(name, 0, left);
  await sink.deleteObject(name);
  await sink.createPages(name, sizeBytes, sequenceNumber);
  if (sizeBytes > 0) await sink.writePages(name, 0, left, { sequenceNumber });
}
