/** Dialog about one disk: its findings, what can be done, its series, its points, its facts. */
import type { DiskStatus } from "../../disk-runner.ts";
import type { AgentPoint } from "../../ports.ts";
import { type Action, offer, placeToasts } from "./actions.ts";
import { facts, h, healthMark, setHealth, setText } from "./dom.ts";
import { drawSeries, drawTimeline, peakOf } from "./drawing.ts";
import { ask } from "./feed.ts";
import { age, formatBytes, formatCount, formatNumberOf, rate, time } from "./format.ts";
import type { Model } from "./model.ts";
import { inWords } from "./points.ts";
import { findingItem } from "./views.ts";

const pageOfPoints = 100;
const slots = 360;

export interface Details {
  readonly disk: string;
  update(): void;
}

export interface DetailsOptions {
  readonly mayAct: boolean;
  readonly span: () => { readonly fromMs: number; readonly toMs: number };
  readonly onClose: () => void;
}

/** Opens the dialog. */
export function openDetails(disk: string, model: Model, { mayAct, span, onClose }: DetailsOptions): Details {
  const mark = healthMark("Normal");
  const [state, findings, about] = [h("p", { class: "sub" }), h("ul", { class: "findings" }), h("div")];
  const timeline = h("canvas", { class: "timeline large", role: "img" });
  const words = h("p", { class: "sub" });
  const charts = ["Lag", "Written", "Sent"].map((label) => {
    const [value, peak, plot] = [h("strong"), h("span", { class: "sub" }), h("canvas", { class: "plot large" })];
    const element = h("figure", {}, h("figcaption", {}, `${label} `, value, " ", peak), plot);
    return { element, value, peak, plot };
  });
  const table = new PointTable(disk);
  const buttons = h("p", { class: "buttons" });
  const dialog = h(
    "dialog",
    {
      class: "details",
      "aria-labelledby": "details-title",
      close: () => {
        placeToasts();
        dialog.remove();
        onClose();
      },
    },
    h(
      "header",
      {},
      h("h2", { id: "details-title" }, mark, disk),
      h("button", { type: "button", class: "quiet", "aria-label": "Close", click: () => dialog.close() }, "✕"),
    ),
    state,
    findings,
    buttons,
    h("h3", {}, "Points"),
    timeline,
    words,
    table.element,
    h("h3", {}, "The last hour"),
    h("div", { class: "charts" }, ...charts.map(({ element }) => element)),
    h("h3", {}, "Facts"),
    about,
  );
  const update = (): void => {
    const status = model.disk(disk);
    if (status === undefined) {
      dialog.close();
      return;
    }
    setHealth(mark, status.health);
    setText(state, `${status.state}, ${pointWords(status)}`);
    findings.replaceChildren(...status.findings.map((finding) => findingItem(finding)));
    if (mayAct) replaceButtons(buttons, actionsOf(status, model));
    else setText(buttons, "To act from this page, add a token to `dashboard` in the configuration.");
    const { points, samples } = model.data(disk);
    drawTimeline(timeline, points, span());
    if (points !== undefined) {
      setText(words, inWords(points));
      timeline.setAttribute("aria-label", inWords(points));
    }
    const values = [status.lag.committedMs, status.churnBytesPerSecond, status.uploadBytesPerSecond] as const;
    for (const [index, { value, peak, plot }] of charts.entries()) {
      const column = index as 0 | 1 | 2;
      const now = values[column];
      setText(value, column === 0 ? age(now) : rate(now ?? 0));
      // The samples end some seconds ago.
      const most = Math.max(peakOf(samples, column), now ?? 0);
      setText(peak, `at most ${column === 0 ? age(most) : rate(most)}`);
      drawSeries(plot, samples, column, slots);
    }
    about.replaceChildren(facts(factsOf(status)));
  };
  document.body.append(dialog);
  dialog.showModal();
  update();
  void table.load();
  return { disk, update };
}

/** A button that has the focus keeps it. */
function replaceButtons(place: HTMLElement, actions: readonly Action[]): void {
  const labels = actions.map(({ title }) => title).join("\n");
  if (place.dataset["labels"] === labels) return;
  place.dataset["labels"] = labels;
  place.replaceChildren(
    ...actions.map((action) => h("button", { type: "button", click: () => offer(action) }, action.title)),
  );
}

interface Committed {
  readonly points: readonly { readonly disk: string; readonly sequence: number; readonly consistency: string }[];
}

function actionsOf({ disk, group, state, vault, hooks, findings }: DiskStatus, model: Model): readonly Action[] {
  const done = (answer: unknown): string =>
    (answer as Committed).points
      .map((point) => `point ${point.sequence} of ${point.disk} is committed (${point.consistency})`)
      .join("; ");
  const target = { disk };
  const take = (title: string, fields: object, text: string): Action => ({
    title,
    text,
    verb: "Take it",
    path: "/v1/point",
    body: () => fields,
    done,
  });
  const tests = model.status?.vaults
    .flatMap(({ failovers }) => failovers)
    .filter((run) => run.kind === "test" && run.disks.includes(disk) && run.state !== "None");
  const isAtRest = state === "paused" || state === "stopped";
  const ofDisk: readonly Action[] = [
    take("Take a point", target, `A point of ${disk} is taken now, beside its schedule.`),
    ...(hooks
      ? [
          take(
            "Take an app point",
            { ...target, applicationConsistent: true },
            `The hooks of ${disk} bring its application to rest for the cut.`,
          ),
        ]
      : []),
    ...(group === null
      ? []
      : [
          take("Take a group point", { group }, `A point of every disk of the group ${group} is taken at one barrier.`),
        ]),
    isAtRest
      ? {
          title: "Resume",
          text: `Points of ${disk} are taken again.`,
          verb: "Resume",
          path: "/v1/resume",
          body: () => target,
          done: () => `${disk} is resumed`,
        }
      : {
          title: "Pause",
          text: `No points of ${disk} are taken until it is resumed. Its writes go on and are tracked.`,
          verb: "Pause",
          path: "/v1/pause",
          body: () => target,
          done: () => `${disk} is paused`,
        },
  ];
  const isAway = findings.some(({ code }) => code === "FAILED_OVER");
  return [
    ...(isAway ? [] : ofDisk),
    {
      title: "Test a failover",
      text: `A point of ${disk} is written to a place of its own, where it can be looked at. The disk goes on.`,
      verb: "Begin the test",
      fields: [
        { name: "to", label: "Target", hint: "a folder of the agent's machine: dir:/srv/drill" },
        { name: "point", label: "Point", hint: "latest, a number, a time, or 2 hours ago", value: "latest" },
      ],
      path: "/v1/failover",
      body: ({ to, point }) => ({ verb: "test", vault, disks: [disk], to, point }),
      done: (answer) => {
        const { run, state: now } = answer as { readonly run: string; readonly state: string };
        return `the test ${run} is in ${now}`;
      },
    },
    ...(tests ?? []).map(({ run }): Action => cleanupOf(run)),
  ];
}

/** Removes what a test has made. */
export function cleanupOf(run: string): Action {
  return {
    title: `Clean up test ${run}`,
    text: `What the test ${run} has made is removed. Nothing else is touched.`,
    verb: "Remove it",
    path: "/v1/failover",
    body: () => ({ verb: "cleanup", run }),
    done: () => `the test ${run} is cleaned up`,
  };
}

function pointWords({ latest, lag }: DiskStatus): string {
  if (latest === null) return "no point yet";
  return `point ${latest.sequence} of ${age(lag.committedMs)} ago (${latest.consistency})`;
}

function factsOf(status: DiskStatus): readonly (readonly [string, string])[] {
  const { lag, barrier, lastPrune, replica, copies, connections } = status;
  return [
    ["Vault, policy", `${status.vault}, ${status.policy}`],
    ["Group", status.group ?? "–"],
    ["Image", status.image],
    ["Served at", status.state === "stopped" ? "–" : `${status.listen}${status.readOnly ? ", read-only" : ""}`],
    ["Connections", connections === null ? "–" : formatCount(connections)],
    ["Size", formatBytes(status.sizeBytes)],
    ["Captured, shipped", `${age(lag.capturedMs)}, ${age(lag.shippedMs)}`],
    ["Backlog", formatBytes(status.backlogBytes)],
    ["Old content kept", formatBytes(status.preservedBytes)],
    ["Barrier", `${barrier.lastMs.toFixed(1)} ms, at most ${barrier.maxMs.toFixed(1)} ms`],
    ["Points", status.points === null ? "–" : formatCount(status.points)],
    [
      "Last prune",
      lastPrune === null
        ? "–"
        : `${age(lastPrune.ageMs)} ago: ${lastPrune.removedPoints} dropped, ${formatNumberOf(lastPrune.keptPoints, "point")} left`,
    ],
    ["Replica", replica === null ? "–" : `${replica.target}: ${replica.state}`],
    ...copies.map(({ vault, state, lagMs }): readonly [string, string] => [
      `Copy in ${vault}`,
      lagMs === null ? state : `${state}, ${age(lagMs)} behind`,
    ]),
  ];
}

/** The disk's points, newest first, a page at a time. */
class PointTable {
  readonly element: HTMLElement;
  readonly #disk: string;
  readonly #body = h("tbody");
  readonly #more: HTMLButtonElement;
  #points: readonly AgentPoint[] = [];
  #shown = 0;

  constructor(disk: string) {
    this.#disk = disk;
    this.#more = h(
      "button",
      { type: "button", class: "quiet", hidden: true, click: () => this.#show() },
      "Show older points",
    );
    const heads = ["Point", "Time", "Consistency", "Changed", "Marks"];
    this.element = h(
      "details",
      { class: "list" },
      h("summary", {}, "List of points"),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Points" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)))),
          this.#body,
        ),
        this.#more,
      ),
    );
  }

  async load(): Promise<void> {
    const path = `/v1/points/${encodeURIComponent(this.#disk)}`;
    const { points } = await ask<{ readonly points: readonly AgentPoint[] }>(path).catch(() => ({ points: [] }));
    this.#points = points.toReversed();
    this.#show();
  }

  #show(): void {
    const next = this.#points.slice(this.#shown, this.#shown + pageOfPoints);
    this.#shown += next.length;
    this.#more.hidden = this.#shown >= this.#points.length;
    this.#body.append(
      ...next.map((point) =>
        h(
          "tr",
          {},
          h("td", {}, String(point.sequence)),
          h("td", {}, time(point.time)),
          h("td", {}, point.consistency),
          h("td", {}, formatBytes(point.changedBytes)),
          h("td", {}, marksOf(point)),
        ),
      ),
    );
  }
}

function marksOf({ label, pinned, held, proved, damaged, dropped, group }: AgentPoint): string {
  return [
    ...(damaged ? ["damaged"] : []),
    ...(pinned ? ["pinned"] : []),
    ...(held ? ["being read"] : []),
    ...(proved === null ? [] : [`proved ${time(proved)}`]),
    ...(dropped ? ["dropped next"] : []),
    ...(group === null ? [] : [`group ${group.name}`]),
    ...(label === null ? [] : [label]),
  ].join(", ");
}
