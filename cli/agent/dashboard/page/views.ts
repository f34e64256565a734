/** The views beside the list of disks: what needs attention, vaults, failovers and jobs, the log. */
import type { Finding, JobSummary, RunSummary, VaultStats } from "../../../../engine/index.ts";
import type { AgentJobs, AgentRuns } from "../../failover-runs.ts";
import type { AgentStatus, VaultStatus } from "../../supervisor.ts";
import type { LogEntry } from "../history.ts";
import { type Action, offer } from "./actions.ts";
import { facts, h, healthMark } from "./dom.ts";
import { ask, RequestFailed } from "./feed.ts";
import { age, formatBytes, formatCount, formatNumberOf, rate, time } from "./format.ts";

/** A finding with its remedy; `disk` where it does not stand below its disk. */
export function findingItem({ level, code, cause, remedy }: Finding, disk?: HTMLElement): HTMLElement {
  return h(
    "li",
    { class: level },
    healthMark(level),
    h(
      "span",
      { class: "lines" },
      h("span", {}, ...(disk === undefined ? [] : [disk, " "]), cause, " ", h("code", {}, code)),
      h("span", { class: "sub" }, remedy),
    ),
  );
}

const findingsFirst = 4;

/** All findings, the worst first; more than a few are folded. */
export class Attention {
  readonly element: HTMLElement;
  readonly #list = h("ul", { class: "findings" });
  readonly #more: HTMLButtonElement;
  readonly #onOpen: (disk: string) => void;
  #isWhole = false;
  #key = "";
  #disks: AgentStatus["disks"] = [];

  constructor(onOpen: (disk: string) => void) {
    this.#onOpen = onOpen;
    this.#more = h("button", { type: "button", class: "quiet", click: () => this.#toggle() });
    this.element = h("section", { class: "attention", "aria-label": "What needs attention" }, this.#list, this.#more);
  }

  update({ disks }: AgentStatus): void {
    this.#disks = disks;
    const found = this.#found();
    const key = JSON.stringify([this.#isWhole, found]);
    if (key === this.#key) return;
    this.#key = key;
    this.element.hidden = found.length === 0;
    const shown = this.#isWhole ? found : found.slice(0, findingsFirst);
    const { activeElement } = document;
    const focused = this.#list.contains(activeElement) ? activeElement?.textContent : undefined;
    this.#list.replaceChildren(
      ...shown.map(({ disk, finding }) =>
        findingItem(finding, h("button", { type: "button", class: "link", click: () => this.#onOpen(disk) }, disk)),
      ),
    );
    // Texts with times change every second, and the focus stays on its disk.
    for (const button of this.#list.querySelectorAll("button")) if (button.textContent === focused) button.focus();
    this.#more.hidden = found.length <= findingsFirst;
    this.#more.textContent = this.#isWhole ? "Show fewer" : `Show all ${found.length}`;
  }

  #found(): readonly { readonly disk: string; readonly finding: Finding }[] {
    const all = this.#disks.flatMap(({ disk, findings }) => findings.map((finding) => ({ disk, finding })));
    return [
      ...all.filter(({ finding }) => finding.level === "Critical"),
      ...all.filter(({ finding }) => finding.level !== "Critical"),
    ];
  }

  #toggle(): void {
    this.#isWhole = !this.#isWhole;
    this.update({ disks: this.#disks } as AgentStatus);
  }
}

/** Cards of the vaults. What the points take is counted when it is asked for, because every map is read. */
export class VaultsView {
  readonly element: HTMLElement = h("section", { class: "cards", "aria-label": "Vaults" });
  readonly #cards = new Map<string, { readonly element: HTMLElement; readonly facts: HTMLElement }>();

  update({ vaults }: AgentStatus): void {
    for (const vault of vaults) {
      const card = this.#cards.get(vault.vault) ?? this.#make(vault.vault);
      card.facts.replaceChildren(facts(vaultFacts(vault)));
    }
  }

  #make(vault: string): { readonly element: HTMLElement; readonly facts: HTMLElement } {
    const about = h("div");
    const composition = h("div", { "aria-live": "polite" });
    const count = h(
      "button",
      { type: "button", click: () => void this.#count(vault, composition, count) },
      "Count what points take",
    );
    const element = h("article", { class: "card" }, h("h2", {}, vault), about, composition, count);
    this.element.append(element);
    const card = { element, facts: about };
    this.#cards.set(vault, card);
    return card;
  }

  async #count(vault: string, place: HTMLElement, button: HTMLButtonElement): Promise<void> {
    button.disabled = true;
    place.replaceChildren("every map of the vault is read…");
    try {
      const stats = await ask<VaultStats>(`/v1/vaults/${encodeURIComponent(vault)}`);
      place.replaceChildren(compositionOf(stats));
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      place.replaceChildren(`${error.message}. ${error.error.remedy}`);
    } finally {
      button.disabled = false;
    }
  }
}

function vaultFacts(vault: VaultStatus): readonly (readonly [string, string])[] {
  const { storedBytes, limitBytesPerSecond: limit, scrubAgeMs, collectionAgeMs } = vault;
  return [
    ["State", vault.open ? "open" : "not open"],
    ["Stored", storedBytes === null ? "not measured yet" : formatBytes(storedBytes)],
    ["Last scrub", scrubAgeMs === null ? "none by this agent yet" : `${age(scrubAgeMs)} ago`],
    ["Last collection", collectionAgeMs === null ? "–" : `${age(collectionAgeMs)} ago`],
    ["Limit", limit === null ? "as configured" : limit === "off" ? "off" : rate(limit)],
  ];
}

/** Bars of what the points would take whole, what is unique of it, and what is stored. */
function compositionOf({
  points,
  logicalBytes,
  uniqueBytes,
  storedBytes,
  metadataBytes,
  disks,
}: VaultStats): HTMLElement {
  const bars: readonly (readonly [string, number])[] = [
    ["as full images", logicalBytes],
    ["unique", uniqueBytes],
    ["compressed", storedBytes],
    ["metadata", metadataBytes],
  ];
  const largest = Math.max(...bars.map(([, bytes]) => bytes), 1);
  const most = disks.toSorted((a, b) => b.storedBytes - a.storedBytes).slice(0, 5);
  return h(
    "div",
    {},
    h("p", { class: "sub" }, formatNumberOf(points, "point")),
    h(
      "dl",
      { class: "bars" },
      ...bars.map(([name, bytes]) =>
        h(
          "div",
          {},
          h("dt", {}, name),
          h("dd", {}, h("meter", { min: 0, max: largest, value: bytes, "aria-label": name }), ` ${formatBytes(bytes)}`),
        ),
      ),
    ),
    h(
      "p",
      { class: "sub" },
      "Most is stored for ",
      most.map(({ disk, storedBytes: own }) => `${disk} (${formatBytes(own)})`).join(", "),
    ),
  );
}

const refreshMs = 15_000;

/** Runs with their progress, and jobs. They lie in the vault, so they are asked for now and then. */
export class FailoversView {
  readonly element: HTMLElement = h("section", { "aria-label": "Failovers" });
  readonly #cleanup: ((run: string) => Action) | undefined;
  #status: AgentStatus | undefined;
  #runs: readonly RunSummary[] = [];
  #jobs: readonly JobSummary[] = [];
  #askedAtMs = -Infinity;
  #seen = "";
  #failure = "";

  /** `cleanup` makes the action that removes a test; undefined: the page may only be looked at. */
  constructor(cleanup: ((run: string) => Action) | undefined) {
    this.#cleanup = cleanup;
  }

  update(status: AgentStatus): void {
    this.#status = status;
    const seen = JSON.stringify(status.vaults.map(({ failovers }) => failovers.map(({ run, state }) => [run, state])));
    const nowMs = performance.now();
    if (nowMs - this.#askedAtMs > refreshMs || seen !== this.#seen) {
      this.#askedAtMs = nowMs;
      this.#seen = seen;
      void this.#load();
    } else this.#render();
  }

  async #load(): Promise<void> {
    try {
      const [{ runs, failures }, { jobs }] = await Promise.all([
        ask<AgentRuns>("/v1/failover"),
        ask<AgentJobs>("/v1/jobs"),
      ]);
      const failure = failures.map(({ vault, message, remedy }) => `Without vault ${vault}: ${message}. ${remedy}.`);
      [this.#runs, this.#jobs, this.#failure] = [runs, jobs, failure.join(" ")];
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      this.#failure = `${error.message}. ${error.error.remedy}`;
    }
    this.#render();
  }

  #render(): void {
    if (this.element.contains(document.activeElement)) return;
    const runs = this.#runs.map((run) => this.#run(run));
    const jobs = this.#jobs
      .slice(0, 50)
      .map((job) =>
        h(
          "tr",
          {},
          h("td", {}, job.job),
          h("td", {}, job.operation),
          h("td", {}, job.disks.join(", ")),
          h("td", {}, job.state),
          h("td", {}, time(job.startTime)),
          h("td", {}, job.tasks.find(({ error }) => error !== null)?.error?.message ?? ""),
        ),
      );
    const heads = ["Job", "Operation", "Disks", "State", "Started", "Failure"];
    this.element.replaceChildren(
      ...(this.#failure === "" ? [] : [h("p", { class: "empty" }, this.#failure)]),
      runs.length === 0
        ? h("p", { class: "empty" }, "No failover and no test.")
        : h("div", { class: "cards" }, ...runs),
      ...(jobs.length === 0
        ? []
        : [
            h(
              "div",
              { class: "scroll", tabindex: "0", role: "region", "aria-label": "Jobs" },
              h(
                "table",
                {},
                h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)))),
                h("tbody", {}, ...jobs),
              ),
            ),
          ]),
    );
  }

  #run(run: RunSummary): HTMLElement {
    const serving = this.#status?.vaults
      .flatMap(({ failovers }) => failovers)
      .find((other) => other.run === run.run)?.serving;
    const progress = (serving ?? []).flatMap(({ disk, hydratedBytes, sizeBytes }) =>
      hydratedBytes === null || sizeBytes === null
        ? []
        : [
            h(
              "p",
              {},
              `${disk} `,
              h("progress", { max: sizeBytes, value: hydratedBytes, "aria-label": `${disk} copied` }),
              ` ${formatBytes(hydratedBytes)} of ${formatBytes(sizeBytes)}`,
            ),
          ],
    );
    const cleanup = this.#cleanup;
    const isCleanable =
      cleanup !== undefined && run.kind === "test" && run.allowedOperations.includes("TestFailoverCleanup");
    return h(
      "article",
      { class: "card" },
      h("h2", {}, healthMark(run.health), `${run.kind} ${run.run}`),
      h("p", {}, `${run.state}, ${run.direction}`),
      facts([
        ["Disks", run.disks.map(({ disk, sequence }) => `${disk} at point ${sequence}`).join(", ")],
        ["Target", run.target],
        ...(serving ?? []).map(({ disk, uri }): readonly [string, string] => [`Served, ${disk}`, uri]),
        ["Begun", time(run.created)],
        ["Due", dueOf(run)],
        ["Allowed", run.allowedOperations.join(", ") || "–"],
      ]),
      ...progress,
      ...(isCleanable ? [h("button", { type: "button", click: () => offer(cleanup(run.run)) }, "Clean up")] : []),
    );
  }
}

/** When a test is overdue, or when a failover ends by itself. */
function dueOf({ due, overdue, ending }: RunSummary): string {
  if (due !== null) return `${time(due)}${overdue ? ", overdue" : ""}`;
  const at = ending?.due ?? null;
  return ending === null || at === null ? "–" : `${ending.action} at ${time(at)}`;
}

/** The log, newest first. */
export class EventsView {
  readonly element: HTMLElement;
  readonly #list = h("ol", { class: "events", reversed: true });
  readonly #empty = h("p", { class: "empty" }, "Nothing has happened since the agent began.");

  constructor() {
    this.element = h("section", { "aria-label": "Events" }, this.#empty, this.#list);
  }

  add({ time: iso, kind, disk, message, code }: LogEntry): void {
    this.#empty.hidden = true;
    this.#list.prepend(
      h(
        "li",
        { class: kind },
        h("time", { datetime: iso }, time(iso)),
        h("strong", {}, disk),
        h("span", {}, message, ...(code === null ? [] : [" ", h("code", {}, code)])),
      ),
    );
    if (this.#list.childElementCount > 500) this.#list.lastElementChild?.remove();
  }
}

/** `3 disks · /etc/tidemark/agent.yaml · 0.1.0, up 4 h`. */
export function agentWords({ disks, version, state, uptimeMs, config }: AgentStatus): string {
  const isStopping = state === "stopping" ? ", stopping" : "";
  return `${formatCount(disks.length)} ${disks.length === 1 ? "disk" : "disks"} · ${config} · ${version}, up ${age(uptimeMs)}${isStopping}`;
}
