/** How a verb of a failover dies in a sweep: at a call of its store, or at a call of a file. */
import { vi } from "vitest";
import { PositionalFile } from "../../../engine/disk/source/positional-file.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemoryStore } from "../../../sink/memory.ts";

/** The store, and what the vault reaches it through. */
export interface CrashPlace {
  readonly memory: MemoryStore;
  readonly line: { current: MemorySink | FaultySink };
}

/**
 * Whether the call that dies has had its effect, and what follows. To die before a call leaves what
 * to die after the one before it leaves, so each is combined with one way to go on.
 */
export const combinations = [
  ["after", "resume"],
  ["before", "give up"],
] as const;

/** What ended the work first, or undefined: what was closed after a crash failed too. */
export async function endOf(work: Promise<unknown>): Promise<unknown> {
  try {
    await work;
    return undefined;
  } catch (error) {
    let first: unknown = error;
    while (first instanceof Error && "suppressed" in first) first = first.suppressed;
    return first instanceof Error && first.cause instanceof CrashError ? first.cause : first;
  }
}

/** From its call number `call` on, every call of a file fails as in a dead process; 0: none. */
export function dyingAt({ memory, line }: CrashPlace, call: number): () => number {
  let count = 0;
  const prototype = PositionalFile.prototype as unknown as Record<string, (...given: unknown[]) => Promise<unknown>>;
  for (const method of ["write", "truncate", "sync", "datasync"]) {
    const real = prototype[method];
    if (real === undefined) throw new Error(`files have no ${method}`);
    vi.spyOn(prototype, method).mockImplementation(async function (this: unknown, ...given: unknown[]) {
      count += 1;
      if (call > 0 && count >= call) {
        // The whole process dies: no call of it reaches the store any more.
        const dead = new FaultySink(new MemorySink({ store: memory }), [
          { on: "any", when: 1, fault: { kind: "crash", effect: "before" } },
        ]);
        line.current = dead;
        throw new CrashError(`file call ${count}`);
      }
      return await Reflect.apply(real, this, given);
    });
  }
  return () => count;
}
