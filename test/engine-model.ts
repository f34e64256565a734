/**
 * What the tests of the engine's inner parts share: an identity, a store in memory, bytes that
 * follow from a seed.
 */

import type { Sink } from "../engine/sink.ts";
import { checksum } from "../engine/store/format/checksum.ts";
import { Store } from "../engine/store/store.ts";
import type { PlannedFault } from "../sink/faults.ts";
import { FaultySink } from "../sink/faults.ts";
import { MemorySink, MemoryStore } from "../sink/memory.ts";

export const vaultId: Uint8Array = Uint8Array.from({ length: 16 }, (_, index) => index * 17);
export const foreignVaultId: Uint8Array = Uint8Array.from({ length: 16 }, (_, index) => 255 - index);
export const disk = "disk";

/** A vault's container in memory, behind a sink that fails as planned. */
export async function openMemory(
  faults: readonly PlannedFault[] = [],
): Promise<{ readonly memory: MemoryStore; readonly sink: FaultySink; readonly store: Store }> {
  const memory = new MemoryStore();
  const sink = new FaultySink(new MemorySink({ store: memory }), faults);
  await sink.inner.createContainer();
  return { memory, sink, store: new Store(sink) };
}

/**
 * Numbers in [0, 2^32) that follow from the seed alone (mulberry32, by Tommy Ettinger, public
 * domain).
 */
export function numbersFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

/** Bytes without any pattern that LZ4 could use. */
export function randomBytes(length: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  const next = numbersFrom(seed);
  for (let word = 0; word < words.length; word += 1) words[word] = next();
  return new Uint8Array(words.buffer, 0, length);
}

/** A digest that follows from a number. */
export function digestOf(value: number): Uint8Array {
  return checksum(Buffer.from(`chunk ${String(value)}`));
}

/** The names of what a store holds, sorted. */
export async function namesOf(sink: Sink, prefix = ""): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of sink.list(prefix)) names.push(name);
  return names.sort();
}
