/** The copies of the agent's configuration, each at work by itself; what they are at, disk by disk. */
import type { Finding } from "../../engine/index.ts";
import type { AgentConfig } from "./config.ts";
import { disksOfCopy } from "./copy-checks.ts";
import { Copying, type CopyingParts } from "./copying.ts";
import type { CopyFacts } from "./ports.ts";

export class Copies {
  readonly #parts: CopyingParts;
  readonly #copies = new Map<string, Copying>();

  constructor(parts: CopyingParts) {
    this.#parts = parts;
  }

  /** Ends the copies that `next` does not have, and those of vaults that are opened anew. */
  async end(next: Pick<AgentConfig, "copies" | "disks">, reopened: ReadonlySet<string>): Promise<void> {
    const kept = new Set(entriesOf(next).map(({ key }) => key));
    const ended = [...this.#copies].filter(
      ([key, { config }]) => !kept.has(key) || reopened.has(config.from) || reopened.has(config.to),
    );
    for (const [key] of ended) this.#copies.delete(key);
    await Promise.all(ended.map(async ([, copying]) => await copying.stop()));
  }

  /** Begins the copies of the configuration that are not at work. */
  begin(config: Pick<AgentConfig, "copies" | "disks">): void {
    for (const { key, copy, disks } of entriesOf(config))
      if (!this.#copies.has(key)) this.#copies.set(key, new Copying(copy, disks, this.#parts));
  }

  /** One for each vault that the disk is copied to. */
  factsOf(disk: string): readonly CopyFacts[] {
    return [...this.#copies.values()].flatMap((copying) => copying.factsOf(disk) ?? []);
  }

  findingsOf(disk: string): readonly Finding[] {
    return [...this.#copies.values()].flatMap((copying) => copying.findingsOf(disk));
  }

  /** Ends all. Idempotent. */
  async stop(): Promise<void> {
    await this.end({ copies: [], disks: new Map() }, new Set());
  }
}

/** Entries that have disks, with what makes one another entry. */
function entriesOf({ copies, disks: all }: Pick<AgentConfig, "copies" | "disks">): {
  readonly key: string;
  readonly copy: AgentConfig["copies"][number];
  readonly disks: readonly string[];
}[] {
  return copies.flatMap((copy) => {
    const disks = disksOfCopy(copy, all.values());
    return disks.length === 0 ? [] : [{ key: JSON.stringify([copy, disks]), copy, disks }];
  });
}
