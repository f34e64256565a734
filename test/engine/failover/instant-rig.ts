/** What the tests of instant targets share: a target on a filled vault, and what it holds. */
import { onTestFinished } from "vitest";
import type { Instant, InstantOptions } from "../../../engine/failover/instant.ts";
import type { Notice } from "../../../engine/notice.ts";
import type { Sink } from "../../../engine/sink.ts";
import type { Filled } from "../recovery/mount/mount-rig.ts";

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
