/**
 * The rules of a finite lease, as Azure has them, without a store: what each call makes of the lease it finds.
 *
 *     none ── acquire ──► held by A ── renew, acquire by A, change to B ──► held, with its full duration again
 *                            │ └── release ──► none
 *                            └── time ──► expired: A may still renew it, until someone writes the object or acquires the lease
 *
 * An adapter keeps one `Lease` per object, applies these functions atomically with the write that they guard, and stores the result.
 */
import { TidemarkError } from "../engine/index.ts";

export interface Lease {
  readonly id: string;
  readonly durationMs: number;
  /** Wall clock, milliseconds since 1970. The lease is held while now is less than this. */
  readonly expiresMs: number;
}

export function acquireLease(name: string, lease: Lease | undefined, id: string, durationSeconds: number, nowMs: number): Lease {
  if (isHeld(lease, nowMs) && !isSame(lease.id, id)) throw leaseHeld(name);
  const durationMs = durationSeconds * 1000;
  return { id, durationMs, expiresMs: nowMs + durationMs };
}

export function renewLease(name: string, lease: Lease | undefined, id: string, nowMs: number): Lease {
  if (lease === undefined || !isSame(lease.id, id)) throw leaseLost(name);
  return { ...lease, expiresMs: nowMs + lease.durationMs };
}

export function changeLease(name: string, lease: Lease | undefined, fromId: string, toId: string, nowMs: number): Lease {
  if (!isHeld(lease, nowMs)) throw leaseLost(name);
  // When the lease is already the new id's, an earlier try of this very call got through.
  if (!isSame(lease.id, fromId) && !isSame(lease.id, toId)) throw leaseLost(name);
  return { ...lease, id: toId, expiresMs: nowMs + lease.durationMs };
}

/** The lease that is left after `id` has given up what it held. */
export function releaseLease(lease: Lease | undefined, id: string): Lease | undefined {
  return lease !== undefined && isSame(lease.id, id) ? undefined : lease;
}

/** Refuses a write that the lease does not allow; otherwise gives the lease that is left after it: a write ends one that has expired. */
export function passWrite(name: string, lease: Lease | undefined, id: string | undefined, nowMs: number): Lease | undefined {
  if (!isHeld(lease, nowMs)) {
    if (id !== undefined) throw leaseLost(name);
    return undefined;
  }
  if (id === undefined || !isSame(lease.id, id)) throw leaseLost(name);
  return lease;
}

/** Refuses the deletion of an object that is leased. */
export function passDelete(name: string, lease: Lease | undefined, nowMs: number): void {
  if (isHeld(lease, nowMs)) throw leaseHeld(name);
}

/** Reads a lease that was stored as JSON. Errors: DAMAGED. */
export function parseLease(name: string, text: string): Lease {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw leaseDamaged(name, error);
  }
  if (typeof parsed !== "object" || parsed === null) throw leaseDamaged(name, undefined);
  const { id, durationMs, expiresMs }: Partial<Record<keyof Lease, unknown>> = parsed;
  if (typeof id !== "string" || typeof durationMs !== "number" || typeof expiresMs !== "number") throw leaseDamaged(name, undefined);
  return { id, durationMs, expiresMs };
}

function isHeld(lease: Lease | undefined, nowMs: number): lease is Lease {
  return lease !== undefined && nowMs < lease.expiresMs;
}

/** UUIDs compare without regard to case. */
function isSame(a: string, b: string): boolean {
  return a.toLowerCase() === b.toLowerCase();
}

function leaseHeld(name: string): TidemarkError {
  return new TidemarkError("LEASE_HELD", `${name} is leased by another`, { detail: { object: name } });
}

function leaseLost(name: string): TidemarkError {
  return new TidemarkError("LEASE_LOST", `the lease on ${name} is not held, or is another's`, { detail: { object: name } });
}

function leaseDamaged(name: string, cause: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `the lease on ${name} cannot be read`, {
    remedy: "when no tidemark process uses the vault, remove the `@lease` file beside the object",
    detail: { object: name },
    cause,
  });
}
