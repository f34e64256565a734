/**
 * Objects that a command makes in a store to try it, and how none of them stays.
 *
 * Their names begin with `capacity-RUN-`, where RUN is a UUID. The object `lease` of a run is made
 * first and removed last, and is leased while the run goes on. So a run that finds names whose lease is
 * free knows that their run is dead, and removes them. The names have no folder, because a store that
 * is a folder keeps empty ones.
 *
 * Invariant: a run that ends, by an error or ^C too, has removed what it made; the next run removes
 * what a killed run has left.
 */
import { randomUUID } from "node:crypto";
import { type CallOptions, hasCode, type Sink } from "../../engine/index.ts";

const prefix = "capacity-";
/** The prefix, a UUID and a hyphen. */
const runPrefixLength: number = prefix.length + 37;
const leaseSeconds = 15;
const renewEveryMs = 5_000;

/** Objects of a run, with the lease that tells that the run goes on. */
export class RunObjects {
  readonly prefix: string = `${prefix}${randomUUID()}-`;
  readonly #sink: Sink;
  readonly #id: string = randomUUID();
  #timer: NodeJS.Timeout | undefined;
  #renewing: Promise<void> = Promise.resolve();

  constructor(sink: Sink) {
    this.#sink = sink;
  }

  async begin(options: CallOptions): Promise<void> {
    await this.make(options);
    await this.lease(options);
  }

  /** Makes the first object, of one byte. Returns its name. */
  async make(options: CallOptions): Promise<string> {
    const name = leaseOf(this.prefix);
    await this.#sink.putObject(name, new Uint8Array(1), { ifAbsent: true }, options);
    return name;
  }

  /** Takes the lease on it. */
  async lease(options: CallOptions): Promise<void> {
    const name = leaseOf(this.prefix);
    await this.#sink.acquireLease(name, this.#id, leaseSeconds, options);
    this.#timer = setInterval(() => {
      // A lost lease lets another run remove the objects. The next transfer then fails and says so.
      this.#renewing = this.#sink.renewLease(name, this.#id).catch(() => clearInterval(this.#timer));
    }, renewEveryMs);
  }

  /**
   * Takes no signal: what was made is removed after ^C, too. `made`: names of what there is besides the
   * first object; default: what a list shows.
   */
  async remove(made?: readonly string[]): Promise<void> {
    clearInterval(this.#timer);
    await this.#renewing;
    const names = made === undefined ? await namesOf(this.#sink, this.prefix) : [...made, leaseOf(this.prefix)];
    await removeObjects(this.#sink, this.prefix, this.#id, names);
  }
}

function leaseOf(run: string): string {
  return `${run}lease`;
}

/** Removes what killed runs have left. Returns the number of objects. */
export async function removeLeftovers(sink: Sink, options: CallOptions): Promise<number> {
  const runs = new Set<string>();
  for await (const { name } of sink.list(prefix, options)) runs.add(name.slice(0, runPrefixLength));
  let removed = 0;
  for (const run of runs) {
    const id = randomUUID();
    try {
      await sink.acquireLease(leaseOf(run), id, leaseSeconds, options);
    } catch (error) {
      if (hasCode(error, "LEASE_HELD")) continue;
      // The lease goes last: without it the run has just ended, or nearly.
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    }
    const names = await namesOf(sink, run, options);
    await removeObjects(sink, run, id, names, options);
    removed += names.length;
  }
  return removed;
}

async function namesOf(sink: Sink, run: string, options: CallOptions = {}): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of sink.list(run, options)) names.push(name);
  return names;
}

/** Removes what a run has made, the lease that `id` holds last. */
async function removeObjects(
  sink: Sink,
  run: string,
  id: string,
  names: readonly string[],
  options: CallOptions = {},
): Promise<void> {
  const lease = leaseOf(run);
  const others = names.filter((name) => name !== lease);
  await Promise.all(others.map(async (name) => await sink.deleteObject(name, options)));
  if (others.length < names.length) {
    await sink.releaseLease(lease, id, options);
    await sink.deleteObject(lease, options);
  }
}
