import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { createDigest, createFingerprint, isZero, sameWords } from "../../../engine/pipeline/kernels.ts";
import { digestNames } from "../../../engine/store/format/documents.ts";
import { numbersFrom, randomBytes } from "../../engine-model.ts";

const key = randomBytes(32, 5);

describe("the digests", () => {
  test("depend on every bit of the data and on the key, and write 16 bytes where they are told", async () => {
    for (const name of digestNames) {
      const digest = await createDigest(name, key);
      const keyed = await createDigest(name, randomBytes(32, 6));
      const data = randomBytes(8192, 1);
      const into = new Uint8Array(48).fill(0xee);
      digest(data, into, 16);
      const first = into.slice(16, 32);
      expect([...into.subarray(0, 16), ...into.subarray(32)].every((byte) => byte === 0xee)).toBe(true);
      digest(data, into, 0);
      expect(into.slice(0, 16)).toEqual(first);
      keyed(data, into, 0);
      expect(into.slice(0, 16)).not.toEqual(first);
      data[8191] = (data[8191] ?? 0) ^ 1;
      digest(data, into, 0);
      expect(into.slice(0, 16)).not.toEqual(first);
    }
  });

  test("read shared memory as they read any other", async () => {
    const plain = randomBytes(4096, 9);
    const shared = Buffer.from(new SharedArrayBuffer(8192), 1024, 4096);
    shared.set(plain);
    for (const name of digestNames) {
      const digest = await createDigest(name, key);
      const [a, b] = [new Uint8Array(16), new Uint8Array(16)];
      digest(plain, a, 0);
      digest(shared, b, 0);
      expect(b).toEqual(a);
    }
  });

  test("by SHA-256 are those of key and data", async () => {
    const digest = await createDigest("sha256", key);
    const into = new Uint8Array(16);
    digest(Buffer.from("abc"), into, 0);
    const expected = createHash("sha256")
      .update(Buffer.concat([key, Buffer.from("abc")]))
      .digest();
    expect(Buffer.from(into).toString("hex")).toBe(expected.subarray(0, 16).toString("hex"));
  });
});

describe("the granule kernels", () => {
  test("find a zero granule, and none that has a single bit", () => {
    const zeros = Buffer.alloc(4096);
    const granule = Buffer.alloc(4096);
    expect(isZero(granule, zeros)).toBe(true);
    for (const at of [0, 1, 2048, 4095]) {
      granule[at] = 1;
      expect(isZero(granule, zeros)).toBe(false);
      granule[at] = 0;
    }
  });

  test("fingerprint by seed, without collisions among 20,000 granules that differ in a counter", async () => {
    const print = await createFingerprint([1, 2]);
    const seeded = await createFingerprint([1, 3]);
    const granule = new Uint8Array(4096);
    const words = new Uint32Array(granule.buffer);
    const next = numbersFrom(1);
    const seen = new Set<string>();
    const [into, other] = [Buffer.alloc(16), Buffer.alloc(16)];
    for (let counter = 0; counter < 20_000; counter += 1) {
      words[next() % 1024] = counter + 1;
      print(granule, into, 0);
      seen.add(into.toString("latin1"));
    }
    seeded(granule, other, 0);
    expect(seen.size).toBe(20_000);
    expect(other.equals(into)).toBe(false);
  });

  test("compare four words, each of them", () => {
    const a = Uint32Array.of(9, 1, 2, 3, 4);
    expect(sameWords(a, 1, Uint32Array.of(1, 2, 3, 4), 0)).toBe(true);
    for (let word = 0; word < 4; word += 1) {
      const b = Uint32Array.of(1, 2, 3, 4);
      b[word] = 7;
      expect(sameWords(a, 1, b, 0)).toBe(false);
    }
  });
});
