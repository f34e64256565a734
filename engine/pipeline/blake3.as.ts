/**
 * Digest kernel, in AssemblyScript: keyed BLAKE3 of whole granules with WASM SIMD, on the slabs'
 * shared memory. `npm run build` compiles it; the TypeScript compiler ignores it.
 *
 * BLAKE3 cuts its input into chunks of 1,024 bytes, hashes each by itself and joins the results as
 * a binary tree. A granule is four such chunks, so four are hashed side by side, one in each lane
 * of a vector; the nodes of the tree are joined four at a time by the same code. A test compares
 * the result with hash-wasm. Source: the BLAKE3 paper, https://github.com/BLAKE3-team/BLAKE3-specs.
 */
const chunkBytes: usize = 1024;
const blockBytes: usize = 64;
const valueBytes: usize = 32;

const chunkStart: i32 = 1;
const chunkEnd: i32 = 2;
const parent: i32 = 4;
const root: i32 = 8;
const keyedHash: i32 = 16;

/**
 * Writes the first 16 bytes of the digest of [data, data + granules × 4096) to `out`. `key` points
 * at 32 bytes; `values` at room for one chaining value of 32 bytes a chunk and 512 bytes more.
 */
export function digestGranules(data: usize, granules: i32, out: usize, key: usize, values: usize): void {
  let count: usize = <usize>granules * 4;
  for (let chunk: usize = 0; chunk < count; chunk += 4) {
    hashFour(
      data + chunk * chunkBytes,
      chunkBytes,
      16,
      <i32>chunk,
      1,
      chunkStart,
      chunkEnd,
      key,
      values + chunk * valueBytes,
    );
  }
  // Level by level: neighbours are joined, an odd one at the end moves up as it is. A level's
  // results overwrite its inputs, which lie ahead of them.
  while (count > 2) {
    const pairs = count >> 1;
    // Read first: four results may be written where fewer are wanted.
    const oddLow = v128.load(values + (count - 1) * valueBytes);
    const oddHigh = v128.load(values + (count - 1) * valueBytes + 16);
    for (let pair: usize = 0; pair < pairs; pair += 4) {
      hashFour(values + pair * 2 * valueBytes, 2 * valueBytes, 1, 0, 0, parent, 0, key, values + pair * valueBytes);
    }
    if (count & 1) {
      v128.store(values + pairs * valueBytes, oddLow);
      v128.store(values + pairs * valueBytes + 16, oddHigh);
    }
    count = pairs + (count & 1);
  }
  hashFour(values, 2 * valueBytes, 1, 0, 0, parent | root, 0, key, values + 256);
  v128.store(out, v128.load(values + 256));
}

/**
 * Hashes four inputs of `blocks` blocks each, which begin at `at`, `at + stride`, …, side by side.
 * Lane j has the counter `counter + j × counterStep`. Writes four chaining values to `out`, after
 * everything has been read.
 */
function hashFour(
  at: usize,
  stride: usize,
  blocks: i32,
  counter: i32,
  counterStep: i32,
  startFlags: i32,
  endFlags: i32,
  key: usize,
  out: usize,
): void {
  let h0 = v128.load32_splat(key + 0);
  let h1 = v128.load32_splat(key + 4);
  let h2 = v128.load32_splat(key + 8);
  let h3 = v128.load32_splat(key + 12);
  let h4 = v128.load32_splat(key + 16);
  let h5 = v128.load32_splat(key + 20);
  let h6 = v128.load32_splat(key + 24);
  let h7 = v128.load32_splat(key + 28);
  const counters = i32x4.add(i32x4.splat(counter), i32x4.mul(i32x4.splat(counterStep), i32x4(0, 1, 2, 3)));
  for (let block = 0; block < blocks; block++) {
    let flags = keyedHash;
    // Parents are one block; their flags all come as start flags.
    if (block == 0) flags |= startFlags;
    if (block == blocks - 1) flags |= endFlags;
    const a0 = v128.load(at, 0);
    const b0 = v128.load(at + stride, 0);
    const c0 = v128.load(at + 2 * stride, 0);
    const d0 = v128.load(at + 3 * stride, 0);
    const ab0 = i32x4.shuffle(a0, b0, 0, 4, 1, 5);
    const cd0 = i32x4.shuffle(c0, d0, 0, 4, 1, 5);
    const ef0 = i32x4.shuffle(a0, b0, 2, 6, 3, 7);
    const gh0 = i32x4.shuffle(c0, d0, 2, 6, 3, 7);
    let m0 = i64x2.shuffle(ab0, cd0, 0, 2);
    let m1 = i64x2.shuffle(ab0, cd0, 1, 3);
    let m2 = i64x2.shuffle(ef0, gh0, 0, 2);
    let m3 = i64x2.shuffle(ef0, gh0, 1, 3);
    const a1 = v128.load(at, 16);
    const b1 = v128.load(at + stride, 16);
    const c1 = v128.load(at + 2 * stride, 16);
    const d1 = v128.load(at + 3 * stride, 16);
    const ab1 = i32x4.shuffle(a1, b1, 0, 4, 1, 5);
    const cd1 = i32x4.shuffle(c1, d1, 0, 4, 1, 5);
    const ef1 = i32x4.shuffle(a1, b1, 2, 6, 3, 7);
    const gh1 = i32x4.shuffle(c1, d1, 2, 6, 3, 7);
    let m4 = i64x2.shuffle(ab1, cd1, 0, 2);
    let m5 = i64x2.shuffle(ab1, cd1, 1, 3);
    let m6 = i64x2.shuffle(ef1, gh1, 0, 2);
    let m7 = i64x2.shuffle(ef1, gh1, 1, 3);
    const a2 = v128.load(at, 32);
    const b2 = v128.load(at + stride, 32);
    const c2 = v128.load(at + 2 * stride, 32);
    const d2 = v128.load(at + 3 * stride, 32);
    const ab2 = i32x4.shuffle(a2, b2, 0, 4, 1, 5);
    const cd2 = i32x4.shuffle(c2, d2, 0, 4, 1, 5);
    const ef2 = i32x4.shuffle(a2, b2, 2, 6, 3, 7);
    const gh2 = i32x4.shuffle(c2, d2, 2, 6, 3, 7);
    let m8 = i64x2.shuffle(ab2, cd2, 0, 2);
    let m9 = i64x2.shuffle(ab2, cd2, 1, 3);
    let m10 = i64x2.shuffle(ef2, gh2, 0, 2);
    let m11 = i64x2.shuffle(ef2, gh2, 1, 3);
    const a3 = v128.load(at, 48);
    const b3 = v128.load(at + stride, 48);
    const c3 = v128.load(at + 2 * stride, 48);
    const d3 = v128.load(at + 3 * stride, 48);
    const ab3 = i32x4.shuffle(a3, b3, 0, 4, 1, 5);
    const cd3 = i32x4.shuffle(c3, d3, 0, 4, 1, 5);
    const ef3 = i32x4.shuffle(a3, b3, 2, 6, 3, 7);
    const gh3 = i32x4.shuffle(c3, d3, 2, 6, 3, 7);
    let m12 = i64x2.shuffle(ab3, cd3, 0, 2);
    let m13 = i64x2.shuffle(ab3, cd3, 1, 3);
    let m14 = i64x2.shuffle(ef3, gh3, 0, 2);
    let m15 = i64x2.shuffle(ef3, gh3, 1, 3);
    let v0 = h0;
    let v1 = h1;
    let v2 = h2;
    let v3 = h3;
    let v4 = h4;
    let v5 = h5;
    let v6 = h6;
    let v7 = h7;
    let v8 = i32x4.splat(0x6a09e667);
    let v9 = i32x4.splat(0xbb67ae85);
    let v10 = i32x4.splat(0x3c6ef372);
    let v11 = i32x4.splat(0xa54ff53a);
    let v12 = counters;
    let v13 = i32x4.splat(0);
    let v14 = i32x4.splat(<i32>blockBytes);
    let v15 = i32x4.splat(flags);
    for (let round = 0; ; round++) {
      v0 = i32x4.add(i32x4.add(v0, v4), m0);
      v12 = rotate16(v128.xor(v12, v0));
      v8 = i32x4.add(v8, v12);
      v4 = rotate12(v128.xor(v4, v8));
      v0 = i32x4.add(i32x4.add(v0, v4), m1);
      v12 = rotate8(v128.xor(v12, v0));
      v8 = i32x4.add(v8, v12);
      v4 = rotate7(v128.xor(v4, v8));
      v1 = i32x4.add(i32x4.add(v1, v5), m2);
      v13 = rotate16(v128.xor(v13, v1));
      v9 = i32x4.add(v9, v13);
      v5 = rotate12(v128.xor(v5, v9));
      v1 = i32x4.add(i32x4.add(v1, v5), m3);
      v13 = rotate8(v128.xor(v13, v1));
      v9 = i32x4.add(v9, v13);
      v5 = rotate7(v128.xor(v5, v9));
      v2 = i32x4.add(i32x4.add(v2, v6), m4);
      v14 = rotate16(v128.xor(v14, v2));
      v10 = i32x4.add(v10, v14);
      v6 = rotate12(v128.xor(v6, v10));
      v2 = i32x4.add(i32x4.add(v2, v6), m5);
      v14 = rotate8(v128.xor(v14, v2));
      v10 = i32x4.add(v10, v14);
      v6 = rotate7(v128.xor(v6, v10));
      v3 = i32x4.add(i32x4.add(v3, v7), m6);
      v15 = rotate16(v128.xor(v15, v3));
      v11 = i32x4.add(v11, v15);
      v7 = rotate12(v128.xor(v7, v11));
      v3 = i32x4.add(i32x4.add(v3, v7), m7);
      v15 = rotate8(v128.xor(v15, v3));
      v11 = i32x4.add(v11, v15);
      v7 = rotate7(v128.xor(v7, v11));
      v0 = i32x4.add(i32x4.add(v0, v5), m8);
      v15 = rotate16(v128.xor(v15, v0));
      v10 = i32x4.add(v10, v15);
      v5 = rotate12(v128.xor(v5, v10));
      v0 = i32x4.add(i32x4.add(v0, v5), m9);
      v15 = rotate8(v128.xor(v15, v0));
      v10 = i32x4.add(v10, v15);
      v5 = rotate7(v128.xor(v5, v10));
      v1 = i32x4.add(i32x4.add(v1, v6), m10);
      v12 = rotate16(v128.xor(v12, v1));
      v11 = i32x4.add(v11, v12);
      v6 = rotate12(v128.xor(v6, v11));
      v1 = i32x4.add(i32x4.add(v1, v6), m11);
      v12 = rotate8(v128.xor(v12, v1));
      v11 = i32x4.add(v11, v12);
      v6 = rotate7(v128.xor(v6, v11));
      v2 = i32x4.add(i32x4.add(v2, v7), m12);
      v13 = rotate16(v128.xor(v13, v2));
      v8 = i32x4.add(v8, v13);
      v7 = rotate12(v128.xor(v7, v8));
      v2 = i32x4.add(i32x4.add(v2, v7), m13);
      v13 = rotate8(v128.xor(v13, v2));
      v8 = i32x4.add(v8, v13);
      v7 = rotate7(v128.xor(v7, v8));
      v3 = i32x4.add(i32x4.add(v3, v4), m14);
      v14 = rotate16(v128.xor(v14, v3));
      v9 = i32x4.add(v9, v14);
      v4 = rotate12(v128.xor(v4, v9));
      v3 = i32x4.add(i32x4.add(v3, v4), m15);
      v14 = rotate8(v128.xor(v14, v3));
      v9 = i32x4.add(v9, v14);
      v4 = rotate7(v128.xor(v4, v9));
      if (round == 6) break;
      const t0 = m0;
      m0 = m2;
      m2 = m3;
      m3 = m10;
      m10 = m12;
      m12 = m9;
      m9 = m11;
      m11 = m5;
      m5 = t0;
      const t1 = m1;
      m1 = m6;
      m6 = m4;
      m4 = m7;
      m7 = m13;
      m13 = m14;
      m14 = m15;
      m15 = m8;
      m8 = t1;
    }
    h0 = v128.xor(v0, v8);
    h1 = v128.xor(v1, v9);
    h2 = v128.xor(v2, v10);
    h3 = v128.xor(v3, v11);
    h4 = v128.xor(v4, v12);
    h5 = v128.xor(v5, v13);
    h6 = v128.xor(v6, v14);
    h7 = v128.xor(v7, v15);
    at += blockBytes;
  }
  storeLanes(h0, h1, h2, h3, out);
  storeLanes(h4, h5, h6, h7, out + 16);
}

/** Turns four vectors of lanes into 16 bytes a lane, 32 bytes apart. */
function storeLanes(a: v128, b: v128, c: v128, d: v128, out: usize): void {
  const ab = i32x4.shuffle(a, b, 0, 4, 1, 5);
  const cd = i32x4.shuffle(c, d, 0, 4, 1, 5);
  const ef = i32x4.shuffle(a, b, 2, 6, 3, 7);
  const gh = i32x4.shuffle(c, d, 2, 6, 3, 7);
  v128.store(out, i64x2.shuffle(ab, cd, 0, 2));
  v128.store(out + 32, i64x2.shuffle(ab, cd, 1, 3));
  v128.store(out + 64, i64x2.shuffle(ef, gh, 0, 2));
  v128.store(out + 96, i64x2.shuffle(ef, gh, 1, 3));
}

function rotate16(x: v128): v128 {
  return i8x16.shuffle(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}

function rotate12(x: v128): v128 {
  return v128.or(i32x4.shr_u(x, 12), i32x4.shl(x, 20));
}

function rotate8(x: v128): v128 {
  return i8x16.shuffle(x, x, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12);
}

function rotate7(x: v128): v128 {
  return v128.or(i32x4.shr_u(x, 7), i32x4.shl(x, 25));
}
