/** Bit set in bytes, as the pages of a tracking file hold it: bit i is bit i % 8 of byte i / 8. */

export function hasBit(bits: Uint8Array, index: number): boolean {
  return (byteAt(bits, index >>> 3) & (1 << (index & 7))) !== 0;
}

export function setBit(bits: Uint8Array, index: number): void {
  bits[index >>> 3] = byteAt(bits, index >>> 3) | (1 << (index & 7));
}

export function clearBit(bits: Uint8Array, index: number): void {
  bits[index >>> 3] = byteAt(bits, index >>> 3) & ~(1 << (index & 7));
}

/** Indexes of the bits that are set, ascending. */
export function bitsSet(bits: Uint8Array): number[] {
  const found: number[] = [];
  for (let index = 0; index < bits.length; index += 1) {
    const byte = byteAt(bits, index);
    for (let bit = 0; byte >>> bit !== 0; bit += 1) if (((byte >>> bit) & 1) === 1) found.push(index * 8 + bit);
  }
  return found;
}

/** A byte; behind the end, zero. */
export function byteAt(bytes: Uint8Array, index: number): number {
  return bytes[index] ?? 0;
}
