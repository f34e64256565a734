/**
 * Both clocks, read together, in ms. `wallMs` counts from 1970. `steadyMs` counts from an arbitrary
 * instant and never goes back.
 */
export interface Instant {
  readonly wallMs: number;
  readonly steadyMs: number;
}

export function now(): Instant {
  return { wallMs: Date.now(), steadyMs: performance.now() };
}
