/** What the tests of instant targets share: a target on a filled vault, and the line to its store. */
import { onTestFinished } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import type { Instant, InstantOptions } from "../../../engine/failover/instant.ts";
import type { Notice } from "../../../engine/notice.ts";
import type { Sink } from "../../../engine/sink.ts";
import { SinkDecorator } from "../../../engine/sink-decorator.ts";
import type { Filled } from "../recovery/mount/mount-rig.ts";

/** The line to a store: it counts what is read of segments, may be slow, and may be cut. */
export class Line extends SinkDecorator {
  isCut = false;
  /** Calls of any kind. */
  calls = 0;
  /** Ranges that were read of segments, and their bytes. */
  ranges = 0;
  pageBytes = 0;
  /** What each read of a segment waits for. */
  gate: Promise<void> = Promise.resolve();

  override async readPages(...call: Parameters<Sink["readPages"]>): ReturnType<Sink["readPages"]> {
    const [, , into] = call;
    this.#pass();
    await this.gate;
    this.#pass();
    await super.readPages(...call);
    this.ranges += 1;
    this.pageBytes += into.byteLength;
  }

  override async getObject(...call: Parameters<Sink["getObject"]>): ReturnType<Sink["getObject"]> {
    this.#pass();
    return await super.getObject(...call);
  }

  override async putObject(...call: Parameters<Sink["putObject"]>): ReturnType<Sink["putObject"]> {
    this.#pass();
    return await super.putObject(...call);
  }

  #pass(): void {
    this.calls += 1;
    if (this.isCut) throw new TidemarkError("STORE_UNREACHABLE", "the line to the store is cut");
  }
}

export interface Opened {
  readonly instant: Instant;
  readonly notices: Notice[];
}

/** Opens an instant target of disk `d` until the test is over. `sink` stands before the store. */
export async function openInstant(
  filled: Filled,
  options: Partial<InstantOptions> & Pick<InstantOptions, "image">,
  sink: Sink = filled.sink,
): Promise<Opened> {
  const notices: Notice[] = [];
  filled.line.current = sink;
  const instant = await filled.vault.instant({ disk: "d", onNotice: (notice) => notices.push(notice), ...options });
  onTestFinished(async () => await instant.close());
  return { instant, notices };
}

/** A gate that is shut, and what opens it. */
export function shutGate(): { readonly gate: Promise<void>; readonly open: () => void } {
  let open = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { gate, open: () => open() };
}
