/**
 * List of disks: a virtual list, of which only the rows that are to be seen exist.
 *
 * Rows have one of two heights, which the style sheet sets, so the place of each is a sum. A row that
 * has the focus stays, wherever it is scrolled to.
 */
import type { DiskStatus } from "../../disk-runner.ts";
import { h, healthMark, setAttribute, setHealth, setText } from "./dom.ts";
import { drawSeries, drawTimeline } from "./drawing.ts";
import { age, formatBytes, rate } from "./format.ts";
import type { DiskData, Row } from "./model.ts";
import { inWords } from "./points.ts";

/** Rows above and below the window that are kept ready. */
const overscanPixels = 200;
const slots = 360;

export interface DiskListOptions {
  /** What scrolls. */
  readonly scroller: HTMLElement;
  readonly data: (disk: string) => DiskData;
  readonly onOpen: (disk: string) => void;
  /** The time that the timelines show. */
  readonly span: () => Span;
}

/** The time that timelines show, and its length in words. */
export interface Span {
  readonly name: string;
  readonly fromMs: number;
  readonly toMs: number;
}

interface Shown {
  readonly element: HTMLElement;
  update(row: Row): void;
  draw(): void;
}

export class DiskList {
  readonly element: HTMLElement;
  readonly #options: DiskListOptions;
  readonly #body: HTMLElement;
  readonly #points = h("div", { role: "columnheader" });
  readonly #shown = new Map<string, Shown>();
  #rows: readonly Row[] = [];
  #tops: number[] = [];
  /** Key of the row that Tab leads to. */
  #current = "";

  constructor(options: DiskListOptions) {
    this.#options = options;
    this.#body = h("div", { role: "rowgroup", class: "rows" });
    const heads = ["Disk", "State", "Lag", "Written", "Sent"];
    this.element = h(
      "div",
      { role: "grid", class: "disks", "aria-label": "Disks", keydown: (event) => this.#onKey(event as KeyboardEvent) },
      h(
        "div",
        { role: "rowgroup" },
        h(
          "div",
          { role: "row", class: "head" },
          ...heads.map((text) => h("div", { role: "columnheader" }, text)),
          this.#points,
        ),
      ),
      this.#body,
    );
  }

  setRows(rows: readonly Row[]): void {
    this.#rows = rows;
    setText(this.#points, `Points of the last ${this.#options.span().name}`);
    const style = getComputedStyle(this.element);
    const heights = {
      disk: Number.parseFloat(style.getPropertyValue("--row")),
      group: Number.parseFloat(style.getPropertyValue("--group-row")),
    };
    this.#tops = [0];
    for (const { kind } of rows) this.#tops.push((this.#tops.at(-1) ?? 0) + heights[kind]);
    this.#body.style.height = `${this.#tops.at(-1) ?? 0}px`;
    setAttribute(this.element, "aria-rowcount", String(rows.length + 1));
    if (!rows.some((row) => keyOf(row) === this.#current)) {
      const first = rows.find(({ kind }) => kind === "disk");
      this.#current = first === undefined ? "" : keyOf(first);
    }
    this.render();
  }

  /** Makes, moves and removes rows for where the window stands, and draws them. */
  render(): void {
    const { scroller } = this.#options;
    const offset = scroller.scrollTop - (this.#body.offsetTop - scroller.offsetTop);
    const [from, to] = [offset - overscanPixels, offset + scroller.clientHeight + overscanPixels];
    const wanted = new Set<string>();
    for (const [index, row] of this.#rows.entries()) {
      const top = this.#tops[index] ?? 0;
      const bottom = this.#tops[index + 1] ?? 0;
      const key = keyOf(row);
      const hasFocus = this.#shown.get(key)?.element === document.activeElement;
      if ((bottom < from || top > to) && !hasFocus) continue;
      wanted.add(key);
      const shown = this.#shown.get(key) ?? this.#make(key, row);
      shown.element.style.transform = `translateY(${top}px)`;
      setAttribute(shown.element, "aria-rowindex", String(index + 2));
      setAttribute(shown.element, "tabindex", key === this.#current ? "0" : "-1");
      shown.update(row);
      shown.draw();
    }
    for (const [key, { element }] of this.#shown) {
      if (wanted.has(key)) continue;
      element.remove();
      this.#shown.delete(key);
    }
  }

  /** Moves the focus to the current row. */
  focus(): void {
    this.#shown.get(this.#current)?.element.focus();
  }

  #make(key: string, row: Row): Shown {
    const made = row.kind === "disk" ? this.#diskRow(row.status.disk) : groupRow();
    this.#shown.set(key, made);
    this.#body.append(made.element);
    return made;
  }

  #diskRow(disk: string): Shown {
    const { data, onOpen, span } = this.#options;
    const mark = healthMark("Normal");
    const name = h("span", { class: "name" }, disk);
    const place = h("span", { class: "sub" });
    const [state, cause] = [h("span"), h("span", { class: "sub" })];
    const figures = [0, 1, 2].map(() => ({
      value: h("span", { class: "value" }),
      plot: h("canvas", { class: "plot" }),
    }));
    const timeline = h("canvas", { class: "timeline", role: "img" });
    const cell = (kind: string, ...children: readonly Node[]): HTMLElement =>
      h("div", { role: "gridcell", class: `cell ${kind}` }, ...children);
    const kinds = ["lag", "churn", "upload"];
    const element = h(
      "div",
      { role: "row", class: "row", "data-disk": disk, click: () => onOpen(disk) },
      cell("disk", mark, h("span", { class: "lines" }, name, place)),
      cell("state", h("span", { class: "lines" }, state, cause)),
      ...figures.map(({ value, plot }, index) => cell(kinds[index] ?? "", value, plot)),
      cell("points", timeline),
    );
    return {
      element,
      update: (row) => {
        if (row.kind !== "disk") return;
        const { status } = row;
        setHealth(mark, status.health);
        setText(place, placeOf(status));
        setText(state, status.state);
        const backlog = status.backlogBytes === 0 ? "" : `backlog ${formatBytes(status.backlogBytes)}`;
        setText(cause, status.findings[0]?.code ?? backlog);
        const texts = [
          age(status.lag.committedMs),
          rate(status.churnBytesPerSecond),
          rate(status.uploadBytesPerSecond),
        ];
        for (const [index, { value }] of figures.entries()) setText(value, texts[index] ?? "");
      },
      draw: () => {
        const { points, samples } = data(disk);
        for (const [index, { plot }] of figures.entries()) drawSeries(plot, samples, index as 0 | 1 | 2, slots);
        drawTimeline(timeline, points, span());
        setAttribute(timeline, "aria-label", points === undefined ? "points are read" : inWords(points));
      },
    };
  }

  #onKey(event: KeyboardEvent): void {
    const disks = this.#rows.flatMap((row, index) => (row.kind === "disk" ? [index] : []));
    const at = disks.findIndex((index) => keyOf(this.#rows[index]) === this.#current);
    const page = Math.max(1, Math.floor(this.#options.scroller.clientHeight / 80));
    const steps: Readonly<Record<string, number>> = {
      ArrowDown: 1,
      ArrowUp: -1,
      j: 1,
      k: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    const step = steps[event.key];
    const isRow = event.target instanceof HTMLElement && event.target.getAttribute("role") === "row";
    if (!isRow) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#options.onOpen(this.#current);
    }
    if (step === undefined) return;
    event.preventDefault();
    const next = disks[Math.max(0, Math.min(at + step, disks.length - 1))];
    if (next === undefined) return;
    this.#current = keyOf(this.#rows[next]);
    const { scroller } = this.#options;
    const top = (this.#tops[next] ?? 0) + this.#body.offsetTop - scroller.offsetTop;
    const bottom = (this.#tops[next + 1] ?? 0) + this.#body.offsetTop - scroller.offsetTop;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight;
    this.render();
    this.focus();
  }
}

function groupRow(): Shown {
  const text = h("div", { role: "gridcell" });
  return {
    element: h("div", { role: "row", class: "group" }, text),
    update: (row) => {
      if (row.kind !== "group") return;
      const disks = `${row.count} ${row.count === 1 ? "disk" : "disks"}`;
      setText(text, row.name === "" ? `without a group · ${disks}` : `group ${row.name} · ${disks}`);
    },
    draw: () => undefined,
  };
}

function placeOf({ vault, sizeBytes }: DiskStatus): string {
  return sizeBytes === 0 ? vault : `${vault} · ${formatBytes(sizeBytes)}`;
}

function keyOf(row: Row | undefined): string {
  if (row === undefined) return "";
  // A disk cannot have a line break in its name.
  return row.kind === "disk" ? row.status.disk : `\n${row.name}`;
}
