/**
 * Fingerprint kernel, in AssemblyScript: XXH3-128 of whole granules with WASM SIMD, on the slabs'
 * shared memory. `npm run build` compiles it to `dist/engine/pipeline/kernels.wasm`; the TypeScript
 * compiler ignores it.
 *
 * It is XXH3-128 with a seed, bit for bit, for inputs of 4,096 bytes (a test compares it with
 * hash-wasm): four blocks of sixteen stripes of 64 bytes, each stripe mixed into eight
 * accumulators, a scramble after each block, one last stripe, and a merge. Source:
 * https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Accumulators are held as four
 * pairs a, b, c, d.
 */
const granuleBytes: usize = 4096;
const blockBytes: usize = 1024;
const stripeBytes: usize = 64;

const prime32x1: u64 = 0x9e3779b1;
const prime32x2: u64 = 0x85ebca77;
const prime32x3: u64 = 0xc2b2ae3d;
const prime64x1: u64 = 0x9e3779b185ebca87;
const prime64x2: u64 = 0xc2b2ae3d27d4eb4f;
const prime64x3: u64 = 0x165667b19e3779f9;
const prime64x4: u64 = 0x85ebca77c2b2ae63;
const prime64x5: u64 = 0x27d4eb2f165667c5;

/**
 * Writes 16 bytes to `out` for each of `granules` granules from `data` on: its fingerprint, or
 * zeros when all of it is zero. `secret` points at the 192 bytes that were derived from the seed.
 */
export function fingerprintGranules(data: usize, granules: i32, out: usize, secret: usize): void {
  for (let granule = 0; granule < granules; granule++) {
    const end = data + granuleBytes;
    if (isZero(data, end)) {
      v128.store(out, i64x2.splat(0));
    } else {
      let a = i64x2(prime32x3, prime64x1);
      let b = i64x2(prime64x2, prime64x3);
      let c = i64x2(prime64x4, prime32x2);
      let d = i64x2(prime64x5, prime32x1);
      const last = end - stripeBytes;
      let at = data;
      for (;;) {
        let key = secret;
        const blockEnd = at + blockBytes < end ? at + blockBytes : last;
        while (at < blockEnd) {
          a = mix(a, at, key);
          b = mix(b, at + 16, key + 16);
          c = mix(c, at + 32, key + 32);
          d = mix(d, at + 48, key + 48);
          at += stripeBytes;
          key += 8;
        }
        if (at == last) break;
        a = scramble(a, secret + 128);
        b = scramble(b, secret + 144);
        c = scramble(c, secret + 160);
        d = scramble(d, secret + 176);
      }
      a = mix(a, last, secret + 121);
      b = mix(b, last + 16, secret + 137);
      c = mix(c, last + 32, secret + 153);
      d = mix(d, last + 48, secret + 169);
      // Canonical byte order: the high half first, big-endian.
      store<u64>(out, bswap(merge(a, b, c, d, secret + 117, ~(granuleBytes * prime64x2))));
      store<u64>(out + 8, bswap(merge(a, b, c, d, secret + 11, granuleBytes * prime64x1)));
    }
    data = end;
    out += 16;
  }
}

function isZero(at: usize, end: usize): bool {
  while (at < end) {
    const first = v128.or(v128.load(at), v128.load(at, 16));
    const second = v128.or(v128.load(at, 32), v128.load(at, 48));
    if (v128.any_true(v128.or(first, second))) return false;
    at += stripeBytes;
  }
  return true;
}

function mix(acc: v128, at: usize, secret: usize): v128 {
  const data = v128.load(at);
  const key = v128.xor(data, v128.load(secret));
  const swapped = i64x2.shuffle(data, data, 1, 0);
  const product = i64x2.extmul_low_i32x4_u(i32x4.shuffle(key, key, 0, 2, 0, 2), i32x4.shuffle(key, key, 1, 3, 1, 3));
  return i64x2.add(acc, i64x2.add(swapped, product));
}

function scramble(acc: v128, secret: usize): v128 {
  const folded = v128.xor(v128.xor(acc, i64x2.shr_u(acc, 47)), v128.load(secret));
  return i64x2.mul(folded, i64x2.splat(prime32x1));
}

function merge(a: v128, b: v128, c: v128, d: v128, secret: usize, start: u64): u64 {
  return avalanche(
    start + mergePair(a, secret) + mergePair(b, secret + 16) + mergePair(c, secret + 32) + mergePair(d, secret + 48),
  );
}

function mergePair(pair: v128, secret: usize): u64 {
  return fold(
    u64(i64x2.extract_lane(pair, 0)) ^ load<u64>(secret),
    u64(i64x2.extract_lane(pair, 1)) ^ load<u64>(secret + 8),
  );
}

/** The 128-bit product's halves, xored. */
function fold(a: u64, b: u64): u64 {
  const aLow = a & 0xffffffff;
  const aHigh = a >> 32;
  const bLow = b & 0xffffffff;
  const bHigh = b >> 32;
  const low = aLow * bLow;
  const middle = aHigh * bLow + (low >> 32);
  const cross = (middle & 0xffffffff) + aLow * bHigh;
  return (aHigh * bHigh + (middle >> 32) + (cross >> 32)) ^ ((cross << 32) | (low & 0xffffffff));
}

function avalanche(hash: u64): u64 {
  const mixed = (hash ^ (hash >> 37)) * 0x165667919e3779f9;
  return mixed ^ (mixed >> 32);
}
