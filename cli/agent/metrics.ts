/**
 * Prometheus metrics of the agent. Gauges are filled from the status at each reading, so that they
 * never differ from `tidemark agent status`; counters and histograms are fed by events.
 *
 * Series of a disk have the label `disk`. While the disk is stopped they stay, with the additional
 * label `state="stopped"`, so that an alert can leave out disks that an operator stopped on
 * purpose. Series of a disk that the configuration no longer has go away.
 */
import process from "node:process";
import { type PointSummary, tidemarkVersion } from "../../engine/index.ts";
import type { DiskStatus } from "./disk-runner.ts";
import { type Counter, expositionContentType, type Gauge, type Histogram, Registry } from "./exposition.ts";
import type { DiskEvent } from "./ports.ts";
import { processMetrics } from "./process-metrics.ts";
import type { AgentStatus, VaultStatus } from "./supervisor.ts";

/** A barrier should take less than 20 ms and is given up after 300 ms. */
const barrierBucketsSeconds: number[] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 1];

const healthNumbers = { Normal: 0, Warning: 1, Critical: 2 } as const;

/** Each gauge with what it shows of a disk; undefined leaves it out. */
const diskGauges: readonly (readonly [name: string, help: string, of: (disk: DiskStatus) => number | undefined])[] = [
  ["tidemark_disk_size_bytes", "Size of the disk.", ({ sizeBytes }) => sizeBytes],
  [
    "tidemark_churn_bytes_per_second",
    "Bytes written to the disk, over the last minute.",
    ({ churnBytesPerSecond }) => churnBytesPerSecond,
  ],
  [
    "tidemark_upload_bytes_per_second",
    "Bytes sent to the store, over the last minute.",
    ({ uploadBytesPerSecond }) => uploadBytesPerSecond,
  ],
  [
    "tidemark_backlog_bytes",
    "Changed on the disk and not yet in a committed point.",
    ({ backlogBytes }) => backlogBytes,
  ],
  [
    "tidemark_preserved_bytes",
    "Old content in the copy-before-write area of the open cut.",
    ({ preservedBytes }) => preservedBytes,
  ],
  ["tidemark_health", "0 Normal, 1 Warning, 2 Critical.", ({ health }) => healthNumbers[health]],
  ["tidemark_latest_sequence", "Sequence number of the newest committed point.", ({ latest }) => latest?.sequence],
  [
    "tidemark_replica_sequence",
    "Sequence number of the point that the disk's replica holds.",
    ({ replica }) => replica?.sequence ?? undefined,
  ],
  ["tidemark_points_kept", "Points that the last prune left.", ({ lastPrune }) => lastPrune?.keptPoints],
  [
    "tidemark_connections",
    "Connections to the address that the disk is exported on.",
    ({ connections }) => connections ?? undefined,
  ],
];

/** The same for vaults. */
const vaultGauges: readonly (readonly [name: string, help: string, of: (vault: VaultStatus) => number | null])[] = [
  ["tidemark_vault_stored_bytes", "Bytes that segments take at the store.", ({ storedBytes }) => storedBytes],
  [
    "tidemark_vault_scrub_age_seconds",
    "Time since the last scrub pass of this agent.",
    ({ scrubAgeMs }) => seconds(scrubAgeMs),
  ],
  [
    "tidemark_vault_collection_age_seconds",
    "Time since the last collection by any process.",
    ({ collectionAgeMs }) => seconds(collectionAgeMs),
  ],
];

/** Bytes of committed points, summed up. */
const pointCounters: readonly (readonly [name: string, help: string, of: (point: PointSummary) => number])[] = [
  ["tidemark_changed_bytes_total", "Bytes that differ from the parent point.", ({ changedBytes }) => changedBytes],
  ["tidemark_new_bytes_total", "Plain bytes of chunks that the vault did not hold.", ({ newBytes }) => newBytes],
  ["tidemark_stored_bytes_total", "Bytes written to segments.", ({ storedBytes }) => storedBytes],
];

export class Metrics {
  readonly #registry = new Registry();
  readonly #status: () => AgentStatus;
  readonly #gauges: readonly (readonly [gauge: Gauge, of: (disk: DiskStatus) => number | undefined])[];
  readonly #vaultGauges: readonly (readonly [gauge: Gauge, of: (vault: VaultStatus) => number | null])[];
  readonly #pointCounters: readonly (readonly [counter: Counter, of: (point: PointSummary) => number])[];
  readonly #lag: Gauge;
  readonly #copyLag: Gauge;
  readonly #state: Gauge;
  readonly #points: Counter;
  readonly #failures: Counter;
  readonly #barrier: Histogram;
  readonly #requests: Counter;
  readonly #updateProcess: () => Promise<void>;

  constructor(status: () => AgentStatus) {
    this.#status = status;
    const registry = this.#registry;
    this.#gauges = diskGauges.map(([name, help, of]) => [registry.gauge(name, help), of]);
    this.#vaultGauges = vaultGauges.map(([name, help, of]) => [registry.gauge(name, help), of]);
    this.#pointCounters = pointCounters.map(([name, help, of]) => [registry.counter(name, help), of]);
    registry
      .gauge("tidemark_build_info", "1, with the versions as labels.")
      .set({ version: tidemarkVersion, node: process.versions.node }, 1);
    this.#lag = registry.gauge(
      "tidemark_lag_seconds",
      "Age of the newest cut that has been captured, shipped, committed.",
    );
    this.#copyLag = registry.gauge(
      "tidemark_copy_lag_seconds",
      "Time whose changes may be missing in the vault that the disk's points are copied to.",
    );
    this.#state = registry.gauge("tidemark_state", "1 for the state that the disk is in.");
    this.#points = registry.counter("tidemark_points_total", "Points committed.");
    this.#failures = registry.counter(
      "tidemark_failures_total",
      "Failures by code; CUT_TIMED_OUT and CUT_ABANDONED are points that were not taken.",
    );
    this.#barrier = registry.histogram(
      "tidemark_barrier_seconds",
      "How long the cut of a committed point held new writes.",
      barrierBucketsSeconds,
    );
    this.#requests = registry.counter("tidemark_control_requests_total", "Requests to the control socket.");
    this.#updateProcess = processMetrics(registry);
  }

  get contentType(): string {
    return expositionContentType;
  }

  onEvent({ kind, disk, code, point }: DiskEvent): void {
    if (kind === "failure") this.#failures.add({ disk, code: code ?? "UNKNOWN" });
    if (kind !== "point") return;
    this.#points.add({ disk });
    if (point !== undefined) for (const [counter, of] of this.#pointCounters) counter.add({ disk }, of(point));
    const status = this.#status().disks.find((other) => other.disk === disk);
    if (status !== undefined) this.#barrier.observe({ disk }, status.barrier.lastMs / 1_000);
  }

  /** `route` is the route's pattern, so that the number of series is bounded. */
  onRequest(route: string, status: number): void {
    this.#requests.add({ route, status: String(status) });
  }

  /** In the text format of Prometheus. */
  async text(): Promise<string> {
    const { disks, vaults } = this.#status();
    // Series of a disk or vault that was removed go away.
    for (const [gauge] of [...this.#gauges, ...this.#vaultGauges]) gauge.reset();
    this.#lag.reset();
    this.#copyLag.reset();
    this.#state.reset();
    for (const status of disks) {
      const { disk, lag, state, copies } = status;
      const labels = state === "stopped" ? { disk, state } : { disk };
      for (const [gauge, of] of this.#gauges) {
        const value = of(status);
        if (value !== undefined) gauge.set(labels, value);
      }
      const stages = { captured: lag.capturedMs, shipped: lag.shippedMs, committed: lag.committedMs };
      for (const [stage, ageMs] of Object.entries(stages))
        if (ageMs !== null) this.#lag.set({ ...labels, stage }, ageMs / 1_000);
      for (const { vault, lagMs } of copies) if (lagMs !== null) this.#copyLag.set({ ...labels, vault }, lagMs / 1_000);
      this.#state.set({ disk, state }, 1);
    }
    for (const status of vaults) {
      for (const [gauge, of] of this.#vaultGauges) {
        const value = of(status);
        if (value !== null) gauge.set({ vault: status.vault }, value);
      }
    }
    await this.#updateProcess();
    return this.#registry.text();
  }
}

function seconds(elapsedMs: number | null): number | null {
  return elapsedMs === null ? null : elapsedMs / 1_000;
}
