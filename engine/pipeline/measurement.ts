/**
 * For measurement: the kernels as a benchmark can call them, bare and on its own thread. In operation only worker threads load them, so they are
 * loaded on demand: whoever merely imports the engine does not pay for compiling WASM.
 */
import type * as Kernels from "./kernels.ts";

/** What `loadKernels` gives. */
export type MeasuredKernels = Pick<typeof Kernels, "createDigest" | "createFingerprint" | "isZero" | "looksIncompressible" | "Lz4">;

/** The kernels, loaded into the calling thread. */
export async function loadKernels(): Promise<MeasuredKernels> {
  return await import("./kernels.ts");
}
