/**
 * Test kit: for writers of a `Sink`, and for tests of programs that embed Tidemark. Bound to no
 * test runner.
 *
 * `sinkConformance` checks an adapter against the contract. `MemorySink` is the strict reference
 * store, `FaultySink` makes chosen calls fail in the ways in which stores fail, `MemoryVolume` is a
 * small disk.
 */

export { CrashError, type Fault, FaultySink, Gate, type PlannedFault, type SinkMethod } from "./faults.ts";
export { MemorySink, type MemorySinkOptions, type MemorySnapshot, MemoryStore } from "./memory.ts";
export type { Check } from "./testing/checks.ts";
export { sinkConformance } from "./testing/conformance.ts";
export type { OpenedSinks, SinkTraits } from "./testing/expectations.ts";
export { MemoryVolume } from "./testing/memory-volume.ts";
