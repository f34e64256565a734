/**
 * Damage: one thing in the vault that is not what it must be, as verify, scrub and heal report it.
 *
 * Inside this folder damage is a `DamageFinding`: what is wrong, where, and what has become of it,
 * as data. Findings are joined, compared and moved from point to point by their fields. `damageOf`
 * puts a finding into words, once, when it is reported.
 */

import { isGone, isUnreadableOrGone, TidemarkError } from "../../errors.ts";
import type { FoundFault } from "../../store/points/identity-guard.ts";
import type { Extent } from "../../volume.ts";
import type { DamagedChunk } from "./heal.ts";

/** One thing that is wrong, and where. */
export interface Damage {
  readonly disk: string;
  /** Of the point that is concerned; null: no single point, or not known which. */
  readonly sequence: number | null;
  /** Id of the point that is concerned. */
  readonly point: string | null;
  /** Bytes of the disk. */
  readonly extent: Extent | null;
  /** Name of the damaged object in the store; for `SOURCE_DIFFERS` the source's description. */
  readonly object: string;
  readonly code: "DAMAGED" | "OBJECT_NOT_FOUND" | "FORMAT_UNSUPPORTED" | "SOURCE_DIFFERS";
  /** For people. */
  readonly message: string;
  /** It has been healed since: every point that needs it can be read again. */
  readonly healed: boolean;
}

/** What is wrong. */
export type DamageCause =
  /** An object cannot be read; `what`: the message of the error that said so. */
  | { readonly kind: "object"; readonly what: string }
  /** A chunk is not what its digest says; `what`: why, with the name of its segment. */
  | { readonly kind: "chunk"; readonly what: string }
  /** The point's bytes are not the source's. */
  | { readonly kind: "difference" }
  | { readonly kind: "size"; readonly sourceBytes: number; readonly pointBytes: number };

/** Damage as data. */
export interface DamageFinding extends Omit<Damage, "message"> {
  readonly cause: DamageCause;
  /** The chunk that has to be healed for it; undefined: what is damaged is no chunk. */
  readonly chunk: DamagedChunk | undefined;
  /** Why it could not be healed; undefined: it has been, or nothing has been tried. */
  readonly unhealed: string | undefined;
}

/** The damage of `vault.json` or of its copy: it concerns every disk, and no point. */
export function identityDamage({ name, message, isGone: isAbsent, isRestored }: FoundFault): Damage {
  const place = { disk: "", sequence: null, point: null, extent: null, object: name };
  return { ...place, code: isAbsent ? "OBJECT_NOT_FOUND" : "DAMAGED", message, healed: isRestored };
}

/** A summary with what else was found, healed and not. */
export function withDamage<Summary extends { readonly damaged: readonly Damage[]; readonly healed: readonly Damage[] }>(
  summary: Summary,
  found: readonly Damage[],
): Summary {
  const [healed, damaged] = [found.filter((one) => one.healed), found.filter((one) => !one.healed)];
  return { ...summary, healed: [...healed, ...summary.healed], damaged: [...damaged, ...summary.damaged] };
}

/** The finding as it is reported. */
export function damageOf(finding: DamageFinding): Damage {
  const { disk, sequence, point, extent, object, code, unhealed, healed } = finding;
  const fate = unhealed === undefined ? "" : `; it could not be healed: ${unhealed}`;
  return { disk, sequence, point, extent, object, code, message: factOf(finding) + fate, healed };
}

function factOf({ cause, extent, object }: DamageFinding): string {
  const where =
    extent === null ? "bytes" : `bytes ${String(extent.offset)} to ${String(extent.offset + extent.length)}`;
  switch (cause.kind) {
    case "object":
      return cause.what;
    case "chunk":
      return `${where} cannot be read back: ${cause.what}`;
    case "difference":
      return `${where} of ${object} differ from the point`;
    case "size":
      return `${object} has ${String(cause.sourceBytes)} bytes, the point has ${String(cause.pointBytes)}`;
  }
}

/** Tells findings of one point apart. */
export function identityOf({ object, extent, code, cause }: DamageFinding): string {
  return JSON.stringify([object, extent?.offset ?? null, code, cause.kind]);
}

export type DamageError = TidemarkError & { readonly code: "DAMAGED" | "OBJECT_NOT_FOUND" | "FORMAT_UNSUPPORTED" };

export function isDamage(error: unknown): error is DamageError {
  return isUnreadableOrGone(error);
}

/**
 * The damage of an object that lists points and cannot be read: how many points that concerns, and
 * which, is not known.
 */
export function listFinding(disk: string, error: DamageError): DamageFinding {
  const { code, message, detail } = error;
  const object = typeof detail["object"] === "string" ? detail["object"] : "unknown";
  const place = { disk, sequence: null, point: null, extent: null, object };
  return {
    ...place,
    code: isGone(error) ? "OBJECT_NOT_FOUND" : code,
    cause: { kind: "object", what: message },
    chunk: undefined,
    unhealed: undefined,
    healed: false,
  };
}
