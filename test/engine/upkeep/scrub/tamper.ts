/** Damage on order: what lies in a memory store is changed behind everybody's back. */
import assert from "node:assert/strict";
import type { MemoryStore } from "../../../../sink/memory.ts";

const pageBytes = 64 * 1024;

export type Tampering = "flipped" | "truncated" | "removed" | "foreign" | "future";

/** Changes a plain object. `foreign` takes its bytes from the same name in `others`. */
export function tamperObject(store: MemoryStore, name: string, how: Tampering, others: MemoryStore): void {
  const { objects } = store;
  const found = objects?.get(name);
  assert(objects !== undefined && found?.kind === "object", `${name} is an object`);
  if (how === "removed") {
    objects.delete(name);
    return;
  }
  objects.set(name, { ...found, etag: store.nextEtag(), bytes: changed(found.bytes, name, how, others) });
}

function changed(bytes: Uint8Array, name: string, how: Exclude<Tampering, "removed">, others: MemoryStore): Uint8Array {
  const copy = Uint8Array.from(bytes);
  switch (how) {
    case "flipped": {
      const at = copy.length - 5;
      copy[at] = (copy[at] ?? 0) ^ 1;
      return copy;
    }
    case "truncated":
      return copy.subarray(0, Math.floor(copy.length / 2));
    case "foreign": {
      const other = others.objects?.get(name);
      assert(other?.kind === "object", `the other vault has ${name} too`);
      return other.bytes;
    }
    case "future": {
      if (name.includes("/map/")) {
        copy[4] = 99;
        return copy;
      }
      if (Buffer.from(copy).toString("latin1", 0, 4) === "TMSE") {
        copy[4] = 99;
        return copy;
      }
      const text = Buffer.from(copy).toString("latin1");
      return Buffer.from(text.replace(/^(tidemark [a-z]+) [0-9]+ /, "$1 99 "), "latin1");
    }
  }
}

/** The name of a segment as it is in the store: in an encrypted run it ends with the segment's key. */
export function storedName(store: MemoryStore, name: string): string {
  return [...(store.objects?.keys() ?? [])].find((stored) => stored.startsWith(`${name}-`)) ?? name;
}

/** Inverts the byte at `offset` of a page object. */
export function flipPage(store: MemoryStore, segment: string, offset: number): void {
  const name = storedName(store, segment);
  const found = store.objects?.get(name);
  assert(found?.kind === "pages", `${name} is a page object`);
  const index = Math.floor(offset / pageBytes);
  const page = Uint8Array.from(found.pages.get(index) ?? new Uint8Array(pageBytes));
  page[offset % pageBytes] = ~(page[offset % pageBytes] ?? 0);
  found.pages.set(index, page);
  store.objects?.set(name, { ...found, etag: store.nextEtag() });
}

/** Cuts a page object short. */
export function shortenPages(store: MemoryStore, segment: string, sizeBytes: number): void {
  const name = storedName(store, segment);
  const found = store.objects?.get(name);
  assert(found?.kind === "pages", `${name} is a page object`);
  store.objects?.set(name, { ...found, etag: store.nextEtag(), sizeBytes });
}
