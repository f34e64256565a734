/**
 * Scrub of a vault by the process that protects its disks: damage is healed from the disks themselves.
 *
 * A writer that may still append to a damaged segment is asked to end its session first. No patch
 * meets a writer in a segment.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { BlockDevice } from "../../device.ts";
import { throwIfAborted } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { Volume } from "../../volume.ts";
import type { Scrubber, ScrubOptions, ScrubSummary } from "./scrub.ts";

/** A protected disk: its content now, and its writer. */
interface ProtectedSource {
  readonly disk: string;
  readonly device: Pick<BlockDevice, "description" | "sizeBytes" | "read">;
  status(): { readonly state: string };
}

/** How long a protection may take to end its cycle. */
const renewalMsMax = 60_000;
const renewalPollMs = 200;

/**
 * A pass in which protected disks heal from themselves. A disk whose writer may still append to a
 * damaged segment is asked to end its session after its cycle, and a second pass heals the segment.
 * Errors: as `Scrubber.pass`.
 */
export async function scrubProtected(
  scrubber: Scrubber,
  { renewals }: Pick<VaultContext, "renewals">,
  protections: Iterable<ProtectedSource>,
  options: ScrubOptions,
): Promise<ScrubSummary> {
  const running = [...protections].filter((protection) => protection.status().state !== "stopped");
  const sources = new Map([
    ...running.map(({ disk, device }): [string, Volume] => [disk, volumeOf(device)]),
    ...(options.sources ?? []),
  ]);
  const open = new Set<string>();
  const onOpen = (disk: string): void => {
    if (running.some((protection) => protection.disk === disk)) open.add(disk);
    options.onOpen?.(disk);
  };
  const first = await scrubber.pass({ ...options, sources, onOpen });
  if (open.size === 0) return first;
  for (const disk of open) renewals.add(disk);
  for (
    let waitedMs = 0;
    waitedMs < renewalMsMax && [...open].some((disk) => renewals.has(disk));
    waitedMs += renewalPollMs
  ) {
    await delay(renewalPollMs, undefined, { signal: options.signal }).catch(() => undefined);
    throwIfAborted(options.signal);
  }
  const second = await scrubber.healAgain({ ...options, sources });
  return {
    ...second,
    roundEnded: first.roundEnded,
    provedPoints: first.provedPoints + second.provedPoints,
    readBytes: first.readBytes + second.readBytes,
    healed: [...first.healed, ...second.healed],
    elapsedMs: first.elapsedMs + second.elapsedMs,
  };
}

function volumeOf(device: ProtectedSource["device"]): Volume {
  return {
    description: device.description,
    sizeBytes: () => Promise.resolve(device.sizeBytes),
    read: async (offset, into) => {
      await device.read(offset, into);
    },
  };
}
