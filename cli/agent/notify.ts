/**
 * Notifications: the agent tells webhooks and commands which findings have come and which have gone.
 *
 * Every place knows what it was told last, and is sent the difference to what is true now. While a
 * place does not take it, the difference is made anew at each attempt. So nothing is queued, a place
 * that was away for long gets one message, and what has come and gone meanwhile is not told.
 *
 * A finding is told when two looks in a row have seen it, so that one that lasts for a moment
 * is not.
 *
 * Invariant: a message holds no secret, and the log holds no path of a webhook, where services put
 * their keys.
 */
import { hostname } from "node:os";
import type { Finding, HealthLevel } from "../../engine/index.ts";
import { errorReport, withoutSecrets } from "../errors.ts";
import { formatNumberOf } from "../quantities.ts";
import type { NotifyConfig } from "./config.ts";
import { deliver } from "./deliver.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock } from "./ports.ts";
import type { LogLevel } from "./schema.ts";
import type { AgentStatus } from "./supervisor.ts";

/** What a place is sent: a JSON object. */
export interface Notification {
  /** A few lines for people, under the name that chat services read. */
  readonly text: string;
  /** ISO 8601 in UTC. */
  readonly time: string;
  readonly host: string;
  /** Path of the agent's configuration. */
  readonly agent: string;
  /** The worst of all disks. */
  readonly health: HealthLevel;
  /** Findings that have come, or have become worse. */
  readonly raised: readonly NotifiedFinding[];
  /** Findings that have gone, as they were told. */
  readonly cleared: readonly NotifiedFinding[];
}

export interface NotifiedFinding extends Finding {
  readonly disk: string;
}

export interface NotifierParts {
  readonly status: () => AgentStatus;
  readonly clock: Clock;
  readonly log: (level: LogLevel, message: string) => void;
  /** Default: `deliver`. */
  readonly send?: ((place: NotifyConfig, notification: Notification, signal: AbortSignal) => Promise<void>) | undefined;
}

const lookEveryMs = 10_000;
const retryMsMax = 300_000;

/** By disk and code. Of several with one code, as of copies to two vaults, a Critical one counts. */
type Findings = ReadonlyMap<string, NotifiedFinding>;

interface Place {
  readonly config: NotifyConfig;
  told: Findings;
  failures: number;
  retryAtMs: number;
}

export class Notifier {
  readonly #parts: NotifierParts;
  readonly #task: PeriodicTask;
  #places: readonly Place[];
  #before: Findings = new Map();

  /** Looks every ten seconds. Throws nothing: what fails is logged, and tried again. */
  constructor(configs: readonly NotifyConfig[], parts: NotifierParts) {
    this.#parts = parts;
    this.#places = configs.map(newPlace);
    const work = async (signal: AbortSignal): Promise<void> => await this.#look(signal);
    this.#task = new PeriodicTask({ clock: parts.clock, firstAfterMs: lookEveryMs, everyMs: lookEveryMs, work });
  }

  /** From now on, other places. One that stays knows what it was told. */
  set(configs: readonly NotifyConfig[]): void {
    const same = (config: NotifyConfig): Place | undefined =>
      this.#places.find((place) => JSON.stringify(place.config) === JSON.stringify(config));
    this.#places = configs.map((config) => same(config) ?? newPlace(config));
  }

  /** Waits for what is being sent, which ends at once. Idempotent. */
  async stop(): Promise<void> {
    await this.#task.stop();
  }

  async #look(signal: AbortSignal): Promise<void> {
    if (this.#places.length === 0) return;
    const status = this.#parts.status();
    const now = findingsOf(status);
    const before = this.#before;
    this.#before = now;
    await Promise.all(this.#places.map(async (place) => await this.#tell(place, status, now, before, signal)));
  }

  async #tell(place: Place, status: AgentStatus, now: Findings, before: Findings, signal: AbortSignal): Promise<void> {
    const { clock, log, send = deliver } = this.#parts;
    if (clock.now() < place.retryAtMs) return;
    const isTold = ([key, { level }]: readonly [string, NotifiedFinding]): boolean =>
      (level === "Critical" || place.config.on === "warning") && (place.told.has(key) || before.has(key));
    const wanted: Findings = new Map([...now].filter(isTold));
    const raised = [...wanted].filter(([key, { level }]) => place.told.get(key)?.level !== level);
    const cleared = [...place.told].filter(([key]) => !wanted.has(key));
    if (raised.length === 0 && cleared.length === 0) return;
    const values = (entries: readonly (readonly [string, NotifiedFinding])[]): NotifiedFinding[] =>
      entries.map(([, finding]) => finding);
    try {
      await send(place.config, notificationOf(status, values(raised), values(cleared)), signal);
      if (place.failures > 0) log("info", `${placeName(place.config)} takes notifications again`);
      place.told = wanted;
      place.failures = 0;
      place.retryAtMs = 0;
    } catch (error) {
      if (signal.aborted) return;
      const retryInMs = Math.min(lookEveryMs * 2 ** place.failures, retryMsMax);
      place.failures += 1;
      place.retryAtMs = clock.now() + retryInMs;
      const why = `${placeName(place.config)} did not take a notification (${errorReport(error).message})`;
      log("warn", `${why}: tried again in ${String(retryInMs / 1_000)} s`);
    }
  }
}

function newPlace(config: NotifyConfig): Place {
  return { config, told: new Map(), failures: 0, retryAtMs: 0 };
}

/** Without the path of a webhook. */
function placeName(config: NotifyConfig): string {
  return config.kind === "command" ? "the command of notify" : `the webhook at ${new URL(config.url).host}`;
}

function findingsOf({ disks }: AgentStatus): Findings {
  const found = new Map<string, NotifiedFinding>();
  for (const { disk, findings } of disks) {
    for (const { level, code, cause, remedy } of findings) {
      const key = `${code} ${disk}`;
      if (found.get(key)?.level === "Critical") continue;
      found.set(key, { disk, level, code, cause: withoutSecrets(cause), remedy: withoutSecrets(remedy) });
    }
  }
  return found;
}

/** Findings that the text names. */
const namedMax = 10;

function notificationOf(
  { config, health }: AgentStatus,
  raised: readonly NotifiedFinding[],
  cleared: readonly NotifiedFinding[],
): Notification {
  const host = hostname();
  const lines = [
    ...raised.map(({ disk, level, cause, code, remedy }) => `${level}: ${disk}: ${cause} (${code}). ${remedy}`),
    ...cleared.map(({ disk, code }) => `Over: ${disk}: ${code}`),
  ];
  const more = lines.length > namedMax ? [`and ${formatNumberOf(lines.length - namedMax, "finding")} more`] : [];
  const text = [`Tidemark on ${host}: health ${health}`, ...lines.slice(0, namedMax), ...more].join("\n");
  return { text, time: new Date().toISOString(), host, agent: config, health, raised, cleared };
}
