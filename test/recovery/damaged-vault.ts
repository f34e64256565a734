/** A vault in memory of a few disks whose stored bytes are spoiled behind everybody's back, and what its points must hold. */
import assert from "node:assert/strict";
import { parseSegmentName } from "../../engine/format/names.ts";
import type { MemoryStore } from "../../sink/memory.ts";

const storedPageBytes = 64 * 1024;

/** What lies at [offset, offset + length) of a page object. */
export function storedBytes(store: MemoryStore, name: string, offset: number, length: number): Buffer {
  const found = store.objects?.get(name);
  assert(found?.kind === "pages", `${name} is a page object`);
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const inPage = (offset + at) % storedPageBytes;
    const part = Math.min(length - at, storedPageBytes - inPage);
    bytes.set(found.pages.get(Math.floor((offset + at) / storedPageBytes))?.subarray(inPage, inPage + part) ?? new Uint8Array(part), at);
    at += part;
  }
  return bytes;
}

/** Puts other bytes into a page object. */
export function spoil(store: MemoryStore, name: string, offset: number, bytes: Uint8Array): void {
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
    if (stored.kind === "pages" && parseSegmentName(name) !== undefined) segments.push({ name, writtenBytes: stored.writtenBytes });
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
