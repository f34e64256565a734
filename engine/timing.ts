/**
 * Timings: how long each lease lasts and how long one process waits for another.
 *
 * Processes of different machines and versions meet in one vault and never talk to each other, so
 * these numbers are part of the protocol. They stand here together because each is chosen with
 * regard to its neighbours; the relations are asserted when the module is loaded. How long a store
 * may forget what it acknowledged is no number of the engine: see `Sink.capabilities.settlingMs`.
 */
import assert from "node:assert/strict";
import { leaseSecondsMax, leaseSecondsMin } from "./sink.ts";

/** Leases on a disk's head, on a reader's hold and on the collector's mark. */
export const leaseTiming = {
  /**
   * Term of a lease. After a machine has died, this long passes until a writer on another machine
   * may take the disk over.
   */
  seconds: 60,
  /** Between two renewals. */
  renewEveryMs: 15_000,
  /** Half-life: an older lease is renewed before any step that no fence guards. */
  trustMs: 30_000,
  /** Longest wait for the release of a lease. One that is not released ends by itself. */
  releaseMsMax: 1_500,
  /** Term for which a pruner leases a hold, to find out whether the hold's reader still lives. */
  probeSeconds: 15,
};

/** Taking a disk over from a writer that is leaving it at this moment. */
export const takeOverTiming = { waitMsMax: 3_000, pollMs: 100 };

/**
 * A reader that finds its point condemned waits this long for the prune; then it looks whether the
 * pruner still lives.
 */
export const pruneFenceTiming = { waitMsMax: 5_000, pollMs: 100 };

/** Garbage collection: condemn, wait for the writers, free. */
export const collectionTiming = {
  /** Default wait for the acknowledgements of all writers. */
  waitMsMax: 60_000,
  /** Between two looks of the collector at the heads. */
  headPollMs: 500,
  /** Between two looks of a writer, while it ships, at the newest collection. */
  writerPollMs: 5_000,
};

/** Worker threads: how long they wait for another vault after the last one was closed. */
export const workerTiming = { lingerMs: 1_000 };

/** The loop of a live disk. */
export const protectionTiming = {
  /** Before a disk is served, the vault is asked for so long whether it was failed over. */
  claimWaitMs: 5_000,
  /** Default time between two crash-consistent points. */
  cycleMsDefault: 5_000,
  /** Default of the longest time that applications stay frozen. */
  freezeMsDefault: 60_000,
  /** Default of the longest time that a cut holds writes back. */
  barrierMsMaxDefault: 300,
  /** Longest sleep between two looks at the clock and at the newest collection. */
  restMsMax: 15_000,
  /** Wait after the first failure of a row; each further failure doubles it. */
  backOffMsMin: 1_000,
  backOffMsMax: 30_000,
  /** Least time between two flushes of a disk that let its tracking file forget settled changes. */
  settleEveryMs: 15_000,
};

/** The pace at which a cycle of a live disk is shipped while clients are at work. */
export const paceTiming = {
  /** Part of the time to the next cut in which everything has been read. The rest is for the commit. */
  windowShare: 0.5,
  windowMsMax: 30_000,
  /** A cycle is not made slower than this: it would be older for nothing. */
  bytesPerSecondMin: 33_554_432,
  /** A batch that waits asks again, because the cycle may be hurried meanwhile. */
  askAgainMsMax: 100,
  /** Clients that ask for nothing for so long are not waited for. */
  servingMs: 200,
};

/** A request to stop a job that another process works on. */
export const runRequestTiming = {
  /** Between two looks of the worker for a request, and of the asking process at the run. */
  pollMs: 1_000,
  /** The asking process waits so long: a dead worker's lease on another machine has ended by then. */
  waitMsMax: 75_000,
};

/** Disks that are served for a run. */
export const servedRunTiming = {
  /** Between two looks whether the vault still holds the run. */
  lookMs: 15_000,
};

/** A disk that is served while it is copied from the vault. */
export const hydrationTiming = {
  /**
   * Default of how long a read of what has not been copied waits for a store that is away. A guest's
   * kernel gives a request up after 30 s or more.
   */
  readWaitMs: 30_000,
  /** Between two tries of a read. */
  retryMs: 500,
  /** Wait before what could not be copied is tried again; each further failure doubles it. */
  backOffMsMin: 1_000,
  backOffMsMax: 60_000,
  /** While clients are at work, the copying rests so many times as long as it was at work. */
  restTimes: 3,
  restMsMax: 1_000,
};

/** Registered agents, in the list that a vault has of them. */
export const registrationTiming = {
  /** A heartbeat is written no more often. */
  heartbeatEveryMs: 60_000,
  /** Silence that is Critical: that of the appliance heartbeat of Azure Site Recovery. */
  unseenCriticalMs: 900_000,
  /** Credentials that end within two weeks are a Warning. */
  credentialsWarningMs: 1_209_600_000,
};

/** A replica that follows its disk: looks for a new point, more seldom while the store is away. */
export const replicaTiming = { pollMs: 2_000, backOffMsMax: 60_000 };

/** Keys of an encrypted vault. */
export const keysTiming = {
  /** A writer looks this often for a new key of the vault, and whether its own still opens it. */
  renewEveryMs: 60_000,
};

const leaseMs = leaseTiming.seconds * 1000;

assert(
  leaseSecondsMin <= leaseTiming.probeSeconds && leaseTiming.seconds <= leaseSecondsMax,
  "every store grants these leases",
);
assert(leaseTiming.trustMs === leaseMs / 2, "a trusted lease has at least half of its term left");
assert(
  leaseTiming.renewEveryMs * 2 <= leaseTiming.trustMs,
  "one renewal may fail before the lease is not trusted any more",
);
assert(leaseTiming.releaseMsMax < leaseMs, "waiting for a release takes less time than letting the lease end");
assert(takeOverTiming.waitMsMax < leaseMs, "waiting for a leaving writer takes less time than letting its lease end");
assert(takeOverTiming.waitMsMax > leaseTiming.releaseMsMax, "a writer that is leaving is waited for");
assert(pruneFenceTiming.waitMsMax < leaseMs, "a reader looks for a dead pruner before that one's lease ends");
assert(
  collectionTiming.writerPollMs * 3 <= collectionTiming.waitMsMax,
  "a writer that ships looks several times while a collector waits",
);
assert(
  protectionTiming.restMsMax * 3 <= collectionTiming.waitMsMax,
  "a disk at rest looks several times while a collector waits",
);
// Measured: with 0.7, commits came after the next cut was due, and points were missed.
assert(paceTiming.windowShare <= 0.5, "half of a cycle is left for shipping what was read last, and for the commit");
assert(paceTiming.askAgainMsMax < paceTiming.servingMs, "a batch that waits sees that clients have left");
assert(protectionTiming.backOffMsMin <= protectionTiming.backOffMsMax, "back-off grows");
assert(
  protectionTiming.barrierMsMaxDefault < protectionTiming.cycleMsDefault,
  "writes are held back for a part of a cycle only",
);
assert(
  registrationTiming.heartbeatEveryMs * 5 <= registrationTiming.unseenCriticalMs,
  "a few lost heartbeats are no silence",
);
assert(
  hydrationTiming.retryMs * 10 <= hydrationTiming.readWaitMs,
  "a read of a store that is away is tried several times",
);

/**
 * A clock of this machine that is further ahead of the store's, in ms, is not believed. Smaller
 * differences are the time that an answer takes, and clocks that are set by hand.
 */
export const clockAheadMsMax = 300_000;

/**
 * A point that is dated further ahead of the clock, in ms, is told. Smaller differences pass, because
 * clocks are set by minutes now and then.
 */
export const aheadToldMs = 3_600_000;
assert(runRequestTiming.waitMsMax > leaseTiming.seconds * 1000, "a dead worker is outlived");
