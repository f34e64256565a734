/**
 * Which part of a page object has been written: the prefix without a gap, and the islands beyond it. Writes of one segment overlap in time and
 * finish in any order, so a prefix alone would forget what landed ahead of it.
 */

/** Half-open range [start, end) of bytes. */
export interface WrittenRange {
  readonly start: number;
  readonly end: number;
}

export interface Written {
  /** [0, prefixBytes) has been written without a gap. */
  readonly prefixBytes: number;
  /** What has been written beyond the first gap: sorted, disjoint, not touching. */
  readonly islands: readonly WrittenRange[];
}

export const nothingWritten: Written = { prefixBytes: 0, islands: [] };

/** `before` with [start, end) added. */
export function withWritten(before: Written, start: number, end: number): Written {
  if (start > before.prefixBytes) return { prefixBytes: before.prefixBytes, islands: merged(before.islands, { start, end }) };
  let prefixBytes = Math.max(before.prefixBytes, end);
  let absorbed = 0;
  for (const island of before.islands) {
    if (island.start > prefixBytes) break;
    prefixBytes = Math.max(prefixBytes, island.end);
    absorbed++;
  }
  return { prefixBytes, islands: absorbed === 0 ? before.islands : before.islands.slice(absorbed) };
}

function merged(islands: readonly WrittenRange[], added: WrittenRange): readonly WrittenRange[] {
  const before = islands.filter((island) => island.end < added.start);
  const after = islands.filter((island) => island.start > added.end);
  const touching = islands.slice(before.length, islands.length - after.length);
  const start = Math.min(added.start, touching[0]?.start ?? added.start);
  const end = Math.max(added.end, touching.at(-1)?.end ?? added.end);
  return [...before, { start, end }, ...after];
}
