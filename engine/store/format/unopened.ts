/**
 * What a reader of an encrypted vault gets in place of an object that does not open. No decoder takes
 * it, so what cannot be opened is met, and repaired, where any other damaged object is.
 */
import { TidemarkError } from "../../errors.ts";
import { sameBytes } from "./checksum.ts";
import { damaged } from "./fields.ts";

export const unopened: {
  /** It was not sealed with a key of the vault for this name. */
  readonly altered: Uint8Array;
  /** A later version, or a process with a later key of the vault, has sealed it. */
  readonly later: Uint8Array;
} = { altered: Buffer.from("tidemark sealed\n"), later: Buffer.from("tidemark sealed later\n") };

/** Refuses what stands for an object that does not open. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function refuseUnopened(bytes: Uint8Array, object: string): void {
  if (sameBytes(bytes, unopened.altered))
    throw damaged(object, "it was changed, or put there, by a process without the vault's key");
  if (sameBytes(bytes, unopened.later))
    throw new TidemarkError("FORMAT_UNSUPPORTED", `${object} is sealed with a later key of the vault`, {
      remedy: laterKeyRemedy,
      detail: { object },
    });
}

export const laterKeyRemedy =
  "start the process again; if this machine only writes, run `tidemark vault keys enroll` first; if vault.json was put back, run `tidemark vault repair`";
