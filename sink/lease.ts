/**
 * Finite leases with Azure's rules, as pure functions from the lease that a call finds to the lease
 * that it leaves.
 *
 *     none ── acquire ──► held by A ── renew, acquire by A, change to B ──► held, with its full duration again
 *                            │ └── release ──► none
 *                            └── time ──► expired: A may still renew it, until another writes the object or acquires the lease
 *
 * An adapter keeps one `Lease` per object. It applies these functions atomically with the write
 * that they guard and stores the result.
 */
import { TidemarkError } from "../engine/index.ts";

export interface Lease {
  readonly id: string;
  readonly durationMs: number;
  /** Wall clock, milliseconds since 1970. The lease is held while now is less than this. */
  readonly expiresMs: number;
}

export function acquireLease(
  name: string,
  lease: Lease | undefined,
  id: string,
  durationSeconds: number,
  nowMs: number,
): Lease {
  if (isHeld(lease, nowMs) && !isSame(lease.id, id)) throw leaseHeld(name);
  const durationMs = durationSeconds * 1000;
  return { id, durationMs, expiresMs: nowMs + durationMs };
}

export function renewLease(name: string, lease: Lease | undefined, id: string, nowMs: number): Lease {
  if (lease === undefined || !isSame(lease.id, id)) throw leaseLost(name);
  return { ...lease, expiresMs: nowMs + lease.durationMs };
}

export function changeLease(
  name: string,
  lease: Lease | undefined,
  fromId: string,
  toId: string,
  nowMs: number,
): Lease {
  if (!isHeld(lease, nowMs)) throw leaseLost(name);
  // When the new id already has the lease, an earlier try of this call was executed.
  if (!isSame(lease.id, fromId) && !isSame(lease.id, toId)) throw leaseLost(name);
  return { ...lease, id: toId, expiresMs: nowMs + lease.durationMs };
}

/** The lease that remains after `id` has released its own. */
export function releaseLease(lease: Lease | undefined, id: string): Lease | undefined {
  return lease !== undefined && isSame(lease.id, id) ? undefined : lease;
}

/**
 * Refuses a write that the lease does not allow. Returns the lease that remains: a write removes an
 * expired one.
 */
export function passWrite(
  name: string,
  lease: Lease | undefined,
  id: string | undefined,
  nowMs: number,
): Lease | undefined {
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
  if (typeof id !== "string" || typeof durationMs !== "number" || typeof expiresMs !== "number")
    throw leaseDamaged(name, undefined);
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
  return new TidemarkError("LEASE_HELD", `another holder has the lease of ${name}`, { detail: { object: name } });
}

function leaseLost(name: string): TidemarkError {
  return new TidemarkError("LEASE_LOST", `the lease of ${name} is not held, or another holder has it`, {
    detail: { object: name },
  });
}

function leaseDamaged(name: string, cause: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `the lease file of ${name} cannot be parsed`, {
    remedy: "stop every tidemark process that uses the vault, then remove the `@lease` file beside the object",
    detail: { object: name },
    cause,
  });
}
