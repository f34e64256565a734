/**
 * LZ4 kernel, in AssemblyScript: blocks of the standard block format, compressed and decompressed
 * where they lie in the slabs' shared memory. `npm run build` compiles it; the TypeScript compiler
 * ignores it.
 *
 * Compression is greedy: a table remembers where each hash of four bytes was seen last, one look a
 * position, and the stride grows while nothing is found. Positions fit in 16 bits for blocks of up to
 * 64 KiB, so that the table is half as large. What costs time is a branch that is predicted wrongly, so
 * lengths are measured and short runs are copied by whole words, without a loop.
 *
 * Invariant: nothing is written outside [target, target + targetBytes), and decompression reads
 * nothing outside its source, also when the source is no LZ4 block. Sources: the LZ4 block format,
 * https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md, and xxhash's multiplier 2654435761.
 */
const minMatch: usize = 4;
/** The format ends a block with at least so many literals, and begins no match in the last 12 bytes. */
const lastLiterals: usize = 5;
const matchFreeBytes: usize = 12;
const distanceMax: usize = 65_535;
const tableLog: u32 = 13;
const runMask: usize = 15;
const matchMask: usize = 15;
/** Looks without a match after which the stride grows by one. */
const skipLog: u32 = 4;

/**
 * Compresses [source, source + length) to `target`. Returns the length of the block, or 0 when it
 * would not fit in `targetBytes`. `table` points at 16 KiB of scratch.
 */
export function lz4Compress(source: usize, length: usize, target: usize, targetBytes: usize, table: usize): usize {
  return length <= 65_536
    ? compress<u16>(source, length, target, targetBytes, table, tableLog)
    : compress<u32>(source, length, target, targetBytes, table, tableLog - 1);
}

function compress<Position>(
  source: usize,
  length: usize,
  target: usize,
  targetBytes: usize,
  table: usize,
  log: u32,
): usize {
  const end = source + length;
  const limit = target + targetBytes;
  let out = target;
  let anchor = source;
  if (length > matchFreeBytes) {
    const shift = 32 - log;
    const lastStart = end - matchFreeBytes;
    const matchEnd = end - lastLiterals;
    memory.fill(table, 0, ((<usize>1) << log) * sizeof<Position>());
    let at = source + 1;
    let ahead = slotOf(load<u32>(at), shift);
    while (true) {
      // Look for a match.
      let match: usize = 0;
      let next = at;
      let looks: u32 = 1 << skipLog;
      let isEnd = false;
      while (true) {
        const slot = table + ahead * sizeof<Position>();
        at = next;
        next += looks >> skipLog;
        looks += 1;
        if (next > lastStart) {
          isEnd = true;
          break;
        }
        match = source + <usize>load<Position>(slot);
        ahead = slotOf(load<u32>(next), shift);
        store<Position>(slot, <Position>(at - source));
        if (load<u32>(match) == load<u32>(at)) {
          if (sizeof<Position>() == 2 || at - match <= distanceMax) break;
        }
      }
      if (isEnd) break;
      // Up to eight bytes before the match may belong to it.
      if (match >= source + 8) {
        const before = load<u64>(at - 8) ^ load<u64>(match - 8);
        const equal = <usize>(clz(before) >> 3);
        const back = min(equal, at - anchor);
        at -= back;
        match -= back;
      }
      let literals = at - anchor;
      while (true) {
        // A token, lengths, literals with what their copy writes beyond them, and an offset.
        if (out + literals + (literals >> 7) + 24 > limit) return 0;
        const token = out;
        out += 1;
        if (literals >= runMask) {
          out = putLength(out, literals - runMask);
          store<u8>(token, <u8>(runMask << 4));
        } else store<u8>(token, <u8>(literals << 4));
        // The source has at least 12 bytes behind the literals, and the target 16.
        for (let copied: usize = 0; copied < literals; copied += 8)
          store<u64>(out + copied, load<u64>(anchor + copied));
        out += literals;
        store<u16>(out, <u16>(at - match));
        out += 2;
        // Most matches end within the next eight bytes.
        const difference =
          at + minMatch + 8 <= matchEnd ? load<u64>(at + minMatch) ^ load<u64>(match + minMatch) : <u64>0;
        const more =
          difference != 0 ? <usize>(ctz(difference) >> 3) : matchLength(at + minMatch, match + minMatch, matchEnd);
        at += minMatch + more;
        if (more >= matchMask) {
          if (out + (more >> 7) + 16 > limit) return 0;
          store<u8>(token, load<u8>(token) | <u8>matchMask);
          out = putLength(out, more - matchMask);
        } else store<u8>(token, load<u8>(token) | <u8>more);
        anchor = at;
        if (at > lastStart) break;
        // What follows the match is looked for at once.
        const slot = table + slotOf(load<u32>(at), shift) * sizeof<Position>();
        match = source + <usize>load<Position>(slot);
        store<Position>(slot, <Position>(at - source));
        if (load<u32>(match) != load<u32>(at)) break;
        if (sizeof<Position>() == 4 && at - match > distanceMax) break;
        literals = 0;
      }
      if (at > lastStart) break;
      at += 1;
      if (at > lastStart) break;
      ahead = slotOf(load<u32>(at), shift);
    }
  }
  const literals = end - anchor;
  if (out + 1 + literals + (literals + 240) / 255 > limit) return 0;
  const token = out;
  out += 1;
  if (literals >= runMask) {
    out = putLength(out, literals - runMask);
    store<u8>(token, <u8>(runMask << 4));
  } else store<u8>(token, <u8>(literals << 4));
  memory.copy(out, anchor, literals);
  return out + literals - target;
}

function slotOf(bytes: u32, shift: u32): usize {
  return <usize>((bytes * 2_654_435_761) >> shift);
}

function putLength(out: usize, length: usize): usize {
  while (length >= 255) {
    store<u8>(out, 255);
    out += 1;
    length -= 255;
  }
  store<u8>(out, <u8>length);
  return out + 1;
}

/** For how many bytes [at, end) goes on as what begins at `match` does. */
function matchLength(at: usize, match: usize, end: usize): usize {
  const start = at;
  while (at + 16 <= end) {
    const equal = i8x16.bitmask(i8x16.eq(v128.load(at), v128.load(match)));
    if (equal != 0xffff) return at - start + <usize>ctz(~equal);
    at += 16;
    match += 16;
  }
  while (at < end && load<u8>(at) == load<u8>(match)) {
    at += 1;
    match += 1;
  }
  return at - start;
}

/** So far from its end the source, or the target, takes what a short sequence may read or write. */
const sourceReach: usize = 32;
const targetReach: usize = 64;

/**
 * Decompresses the block [source, source + length), which must give exactly `targetBytes` bytes, to
 * `target`. Returns 1, or 0 when it is no such block; the target then holds anything.
 */
export function lz4Decompress(source: usize, length: usize, target: usize, targetBytes: usize): i32 {
  const sourceEnd = source + length;
  const sourceSafe = length > sourceReach ? sourceEnd - sourceReach : source;
  const safeBytes = targetBytes > targetReach + 8 ? targetBytes - targetReach - 8 : 0;
  return decompress(source, sourceEnd, sourceSafe, target, target + targetBytes, safeBytes);
}

/**
 * Two loops. The inner one takes short sequences: one comparison proves that what they read and write
 * is far from both ends, and another one their distance. Sequences of any other kind, also broken
 * ones, are left to the outer loop, which looks at every bound. The ends are parameters because V8
 * would compute them again for each sequence.
 */
function decompress(
  source: usize,
  sourceEnd: usize,
  sourceSafe: usize,
  target: usize,
  targetEnd: usize,
  safeBytes: usize,
): i32 {
  // Unsigned, so that a position or a distance of less than eight bytes is a huge one.
  const firstSafe = target + 8;
  let at = source;
  let out = target;
  while (at < sourceEnd) {
    while (at < sourceSafe) {
      const position = out - firstSafe;
      if (position >= safeBytes) break;
      const token = <usize>load<u8>(at);
      const literals = token >> 4;
      if (literals == runMask) break;
      v128.store(out, v128.load(at, 1));
      const next = at + literals;
      const distance = <usize>load<u16>(next, 1);
      if (distance - 8 > position + literals) break;
      const begin = out + literals;
      const from = begin - distance;
      const matched = token & matchMask;
      // Most sequences end here.
      if (matched != matchMask) {
        store<u64>(begin, load<u64>(from));
        store<u64>(begin, load<u64>(from, 8), 8);
        if (matched > 12) store<u32>(begin, load<u32>(from, 16), 16);
        at = next + 3;
        out = begin + matched + minMatch;
        continue;
      }
      const more = <usize>load<u8>(next, 3);
      const bytes = more + matchMask + minMatch;
      if (more == 255 || bytes + 32 > targetEnd - begin) break;
      let copied: usize = 0;
      do {
        store<u64>(begin + copied, load<u64>(from + copied));
        store<u64>(begin + copied, load<u64>(from + copied, 8), 8);
        store<u64>(begin + copied, load<u64>(from + copied, 16), 16);
        store<u64>(begin + copied, load<u64>(from + copied, 24), 24);
        copied += 32;
      } while (copied < bytes);
      at = next + 4;
      out = begin + bytes;
    }
    const token = <usize>load<u8>(at);
    at += 1;
    let literals = token >> 4;
    if (literals == runMask) {
      let more: usize = 255;
      while (more == 255) {
        if (at >= sourceEnd) return 0;
        more = <usize>load<u8>(at);
        at += 1;
        literals += more;
      }
    }
    if (literals > sourceEnd - at || literals > targetEnd - out) return 0;
    if (sourceEnd - at >= literals + 16 && targetEnd - out >= literals + 16) {
      for (let copied: usize = 0; copied < literals; copied += 16) v128.store(out + copied, v128.load(at + copied));
    } else memory.copy(out, at, literals);
    at += literals;
    out += literals;
    // The last sequence has no match.
    if (at == sourceEnd) return out == targetEnd ? 1 : 0;
    if (sourceEnd - at < 2) return 0;
    const distance = <usize>load<u16>(at);
    at += 2;
    if (distance == 0 || distance > out - target) return 0;
    let matched = token & matchMask;
    if (matched == matchMask) {
      let more: usize = 255;
      while (more == 255) {
        if (at >= sourceEnd) return 0;
        more = <usize>load<u8>(at);
        at += 1;
        matched += more;
      }
    }
    matched += minMatch;
    if (matched > targetEnd - out) return 0;
    const matchEnd = out + matched;
    let from = out - distance;
    if (distance >= 8 && targetEnd - out >= matched + 8) {
      do {
        store<u64>(out, load<u64>(from));
        out += 8;
        from += 8;
      } while (out < matchEnd);
    } else if (targetEnd - out >= matched + 8) {
      // A short period: eight bytes of it, then whole multiples of it that are at least eight.
      const first = out + 8;
      while (out < first) {
        store<u8>(out, load<u8>(from));
        out += 1;
        from += 1;
      }
      from = out - ((8 + distance - 1) / distance) * distance;
      while (out < matchEnd) {
        store<u64>(out, load<u64>(from));
        out += 8;
        from += 8;
      }
    } else {
      while (out < matchEnd) {
        store<u8>(out, load<u8>(from));
        out += 1;
        from += 1;
      }
    }
    out = matchEnd;
  }
  return 0;
}
