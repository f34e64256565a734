/**
 * Screen of `tidemark watch`: the agent's disks in a table with a cursor, what the disk at the cursor
 * needs, and keys. A model without a terminal: it takes keys and gives texts.
 *
 * Invariant: the screen has at most as many lines as the terminal, none is wider than it, and the
 * disk at the cursor is always among them. Nothing is done before `y` has confirmed it.
 */
import { formatNumberOf } from "../quantities.ts";
import { cut, fittedTable, printable, rowsOf } from "../text.ts";
import type { DiskStatus } from "./disk-runner.ts";
import { type Canvas, describeHead, diskColumns, findingLines } from "./status-table.ts";
import type { AgentStatus } from "./supervisor.ts";

/** What the operator has confirmed: a request to the control socket. */
export interface WatchRequest {
  readonly path: string;
  readonly fields: object;
  /** What it is, in words. */
  readonly what: string;
}

/** `quit`, a request to send, or nothing to do but to draw. */
export type WatchAnswer = "quit" | "draw" | WatchRequest;

interface Size {
  readonly rows: number;
}

const orders = ["as configured", "worst first", "longest lag", "most written"] as const;
const keysText = "↑↓ move  p a g points  space pause/resume  s order  f findings  ? keys  q quit";
/** Lines about the disk at the cursor. */
const belowMax = 7;
/** Rows of a question, or of what has become of a request. */
const saidMax = 4;
const help: readonly string[] = [
  "↑ ↓ j k    move to another disk; PgUp and PgDn by ten, Home and End to the ends",
  "p          take a point of the disk now",
  "a          take an application-consistent point of the disk now",
  "g          take a point of every disk of its group, at one barrier",
  "space      pause the disk, or resume it",
  "s          another order: as configured, worst first, longest lag, most written",
  "f          only disks with findings, or all",
  "q ^C       quit; the agent goes on",
];
const ranks = { Critical: 0, Warning: 1, Normal: 2 } as const;

export class WatchScreen {
  #status: AgentStatus | undefined;
  #cursor = "";
  #order: (typeof orders)[number] = "as configured";
  #onlyFindings = false;
  #isHelp = false;
  #asked: WatchRequest | undefined;
  #message = "";
  /** Why what is shown is not what is true now; empty: it is. */
  #lost = "";

  take(status: AgentStatus): void {
    this.#status = status;
    this.#lost = "";
  }

  /** The agent does not answer: what is shown is old. */
  lose(why: string): void {
    this.#lost = why;
  }

  /** What has become of a request. */
  tell(message: string): void {
    this.#message = message;
  }

  /** `name` is that of a key as Node's readline gives it, or the character. */
  key(name: string): WatchAnswer {
    const asked = this.#asked;
    if (asked !== undefined) {
      this.#asked = undefined;
      this.#message = name === "y" ? `${asked.what}: asked` : "nothing was done";
      return name === "y" ? asked : "draw";
    }
    this.#message = "";
    if (this.#isHelp) {
      this.#isHelp = false;
      return "draw";
    }
    const steps: Readonly<Record<string, number>> = {
      up: -1,
      k: -1,
      down: 1,
      j: 1,
      pageup: -10,
      pagedown: 10,
      home: -Infinity,
      end: Infinity,
    };
    const step = steps[name];
    if (step !== undefined) this.#move(step);
    else if (name === "q" || name === "ctrl-c") return "quit";
    else if (name === "?") this.#isHelp = true;
    else if (name === "s") this.#order = orders[(orders.indexOf(this.#order) + 1) % orders.length] ?? "as configured";
    else if (name === "f") this.#onlyFindings = !this.#onlyFindings;
    else this.#asked = this.#requestOf(name);
    return "draw";
  }

  text(canvas: Canvas & Size): string {
    const { rows, columns } = canvas;
    if (this.#status === undefined) return "";
    const disks = this.#disks();
    const at = Math.max(
      0,
      disks.findIndex(({ disk }) => disk === this.#cursor),
    );
    const current = disks[at];
    const inRows = (lines: readonly string[]): readonly string[] => lines.flatMap((line) => rowsOf(line, columns));
    const head =
      this.#lost === ""
        ? inRows(describeHead(this.#status, canvas))
        : [...inRows([canvas.paint("red", this.#lost)]), "what follows is old; this screen goes on when it answers"];
    const said = this.#asked === undefined ? this.#message : `${this.#asked.what}? y, or any other key for no`;
    const foot = [...inRows([said]).slice(0, Math.max(1, Math.min(saidMax, rows - 3))), cut(keysText, columns)];
    const findings = current === undefined ? [] : findingLines(current, canvas);
    const below = inRows(["", ...(findings.length === 0 ? [placeLine(current)] : findings)]).slice(0, belowMax);
    const room = Math.max(1, rows - 1 - foot.length);
    const body = this.#isHelp
      ? ["", ...help]
      : ["", ...this.#tableLines(disks, at, canvas, room - head.length - below.length - 1), ...below];
    const lines = [...head, ...body];
    const filled = [...lines.slice(0, room), ...Array.from({ length: Math.max(0, room - lines.length) }, () => "")];
    return [...filled, ...foot].join("\n");
  }

  /** The rows around the cursor that fit, below the headings. */
  #tableLines(disks: readonly DiskStatus[], at: number, canvas: Canvas & Size, room: number): readonly string[] {
    if (disks.length === 0)
      return [this.#onlyFindings ? "no disk has a finding; f shows all" : "the agent has no disks"];
    // Without the headings, and without the line that says how many there are.
    const count = Math.max(1, disks.length < room ? room - 1 : room - 2);
    const from = Math.max(0, Math.min(at - Math.floor(count / 2), disks.length - count));
    const window = disks.slice(from, from + count);
    const columns = diskColumns(window, canvas);
    const table = fittedTable(columns, window, canvas.columns - 2).split("\n");
    const more =
      disks.length > count
        ? [`  ${from + 1} to ${from + window.length} of ${formatNumberOf(disks.length, "disk")}, ${this.#order}`]
        : [];
    return [...table.map((line, index) => `${index - 1 === at - from ? ">" : " "} ${line}`), ...more];
  }

  #disks(): readonly DiskStatus[] {
    const disks = (this.#status?.disks ?? []).filter(({ findings }) => !this.#onlyFindings || findings.length > 0);
    const by = (of: (disk: DiskStatus) => number): DiskStatus[] => disks.toSorted((a, b) => of(a) - of(b));
    switch (this.#order) {
      case "as configured":
        return disks;
      case "worst first":
        return by(({ health }) => ranks[health]);
      case "longest lag":
        return by(({ lag }) => -(lag.committedMs ?? Number.MAX_VALUE));
      case "most written":
        return by(({ churnBytesPerSecond }) => -churnBytesPerSecond);
    }
  }

  #move(step: number): void {
    const disks = this.#disks();
    const at = Math.max(
      0,
      disks.findIndex(({ disk }) => disk === this.#cursor),
    );
    this.#cursor = disks[Math.max(0, Math.min(at + step, disks.length - 1))]?.disk ?? "";
  }

  #requestOf(name: string): WatchRequest | undefined {
    const disks = this.#disks();
    const current = disks.find(({ disk }) => disk === this.#cursor) ?? disks[0];
    if (current === undefined) return undefined;
    const { disk, group, state } = current;
    const shown = printable(disk);
    switch (name) {
      case "p":
        return { path: "/v1/point", fields: { disk }, what: `take a point of ${shown}` };
      case "a":
        return {
          path: "/v1/point",
          fields: { disk, applicationConsistent: true },
          what: `take an application-consistent point of ${shown}`,
        };
      case "g":
        if (group === null) return undefined;
        return { path: "/v1/point", fields: { group }, what: `take a point of the group ${printable(group)}` };
      case "space":
        return state === "paused" || state === "stopped"
          ? { path: "/v1/resume", fields: { disk }, what: `resume ${shown}` }
          : { path: "/v1/pause", fields: { disk }, what: `pause ${shown}` };
      default:
        return undefined;
    }
  }
}

function placeLine(disk: DiskStatus | undefined): string {
  if (disk === undefined) return "";
  return `${printable(disk.disk)}: ${printable(disk.image)}, vault ${printable(disk.vault)}, policy ${printable(disk.policy)}, at ${printable(disk.listen)}`;
}
