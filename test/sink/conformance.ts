/** Registers the conformance suite of sinks with vitest. */
import { describe, test } from "vitest";
import { type OpenedSinks, type SinkTraits, sinkConformance } from "../../sink/testing.ts";

/** Registers the suite for one adapter: see `sinkConformance`. */
export function describeSink(name: string, open: () => Promise<OpenedSinks>, traits: SinkTraits = {}): void {
  describe(`${name} keeps the contract of`, () => {
    for (const { group, name: fact, run } of sinkConformance(open, traits)) test([...group, fact].join(" > "), run);
  });
}
