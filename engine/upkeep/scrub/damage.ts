/** Damage: one thing in the vault that is not what it must be, as verify, scrub and heal report it. */
import type { Extent } from "../../volume.ts";

/** One thing that is wrong, and where: with a point's extent when data is damaged, without when a whole object is. */
export interface Damage {
  readonly disk: string;
  readonly sequence: number | null;
  readonly point: string | null;
  readonly extent: Extent | null;
  /** Name of the damaged object in the store; for `SOURCE_DIFFERS` the source's description. */
  readonly object: string;
  readonly code: "DAMAGED" | "OBJECT_NOT_FOUND" | "FORMAT_UNSUPPORTED" | "SOURCE_DIFFERS";
  readonly message: string;
  /** It has been healed since: every point that needs it can be read again. */
  readonly healed: boolean;
}
