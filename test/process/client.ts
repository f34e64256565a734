/**
 * One vault as its users see it: commands, and what they said. What a test starts and kills is a
 * process; what it only waits for runs in the test's process where `Place.run` does so.
 */
import { expect } from "vitest";
import { type Ended, type Line, Place, parseLines, type Running } from "../cli/tidemark.ts";

/** What a command left behind. */
export interface Told {
  readonly code: number | null;
  readonly lines: readonly Line[];
  /** The summary or the error. */
  readonly last: Line;
  readonly elapsedMs: number;
}

/** A folder of its own, with images and local state, and a vault that every command is told. */
export class Client {
  readonly place: Place = new Place();
  vault: string;

  constructor(vault: string) {
    this.vault = vault;
  }

  path(name: string): string {
    return this.place.path(name);
  }

  /** Starts a command with `--json`. It is gone when the test is. */
  start(...words: readonly string[]): Running {
    return this.startUnder([], ...words);
  }

  /** Starts a command with `--json` in the charge of the command `under`. */
  startUnder(under: readonly string[], ...words: readonly string[]): Running {
    return this.place.start([...words, "--json"], { TIDEMARK_VAULT: this.vault }, under);
  }

  /** Runs a command to its end. Fails when it prints anything but JSON. */
  async run(...words: readonly string[]): Promise<Told> {
    return await told({ ended: this.place.run([...words, "--json"], { TIDEMARK_VAULT: this.vault }) });
  }

  async replicate(image: string, ...more: readonly string[]): Promise<Told> {
    return await this.run("replicate", image, "--disk", "d", ...more);
  }

  /**
   * The sequence numbers of the points that are listed; none when there is no such disk, vault or
   * container.
   */
  async sequences(): Promise<readonly number[]> {
    const { code, lines } = await this.run("points", "list", "--disk", "d");
    if (code !== 10) expect(code, JSON.stringify(lines)).toBe(0);
    return lines.filter(({ type }) => type === "point").map((line) => Number(line["sequence"]));
  }

  /** Checks that every listed point is whole, and gives their sequence numbers. */
  async verified(): Promise<readonly number[]> {
    const sequences = await this.sequences();
    if (sequences.length > 0) {
      const { code, last } = await this.run("verify");
      expect({ code, last }).toMatchObject({ code: 0, last: { damaged: [], checkedPoints: sequences.length } });
    }
    return sequences;
  }
}

/** Waits for the end of a command that was started with `--json`. */
export async function told(running: { readonly ended: Promise<Ended> }): Promise<Told> {
  const startedAt = performance.now();
  const { code, stdout, stderr } = await running.ended;
  const lines = parseLines(stdout);
  const last = lines.at(-1);
  if (stderr !== "" || last === undefined)
    throw new Error(`exit ${String(code)}; stderr: ${stderr}; stdout: ${stdout}`);
  return { code, lines, last, elapsedMs: performance.now() - startedAt };
}

/** The codes of the notices among `lines`. */
export function notices({ lines }: Told): readonly unknown[] {
  return lines.filter(({ type }) => type === "notice").map((line) => line["code"]);
}
