/**
 * The dashboard: one page that shows what `/v1/status` says, as it changes.
 *
 * The status comes once a second. What is not to be seen is not drawn: a view that is not shown, a row
 * outside the window, a page in the background.
 */
import type { AgentStatus } from "../../supervisor.ts";
import type { LogEntry } from "../history.ts";
import { cleanupOf, type Details, openDetails } from "./details.ts";
import { DiskList, type Span } from "./disk-list.ts";
import { byId, type Health, h, healthMark, setText } from "./dom.ts";
import { forgetColours } from "./drawing.ts";
import { type ApiError, ask, follow, keepToken } from "./feed.ts";
import { type Choice, countWords, Model, rowsOf } from "./model.ts";
import { markWords } from "./points.ts";
import { Attention, agentWords, EventsView, FailoversView, VaultsView } from "./views.ts";

type View = "disks" | "vaults" | "failovers" | "events";
const views: readonly View[] = ["disks", "vaults", "failovers", "events"];

const minute = 60_000;
const spans: readonly (readonly [name: string, spanMs: number])[] = [
  ["15 min", 15 * minute],
  ["2 h", 120 * minute],
  ["24 h", 1_440 * minute],
  ["7 d", 10_080 * minute],
  ["30 d", 43_200 * minute],
];
const orders: readonly (readonly [order: Choice["order"], name: string])[] = [
  ["group", "Group"],
  ["name", "Name"],
  ["health", "Worst first"],
  ["lag", "Longest lag"],
  ["churn", "Most written"],
  ["backlog", "Largest backlog"],
];
const keys: readonly (readonly [key: string, what: string])[] = [
  ["↑ ↓", "move in the list; also j and k"],
  ["Enter", "open a disk"],
  ["Esc", "close"],
  ["/", "search"],
  ["1 2 3 4", "disks, vaults, failovers, events"],
  ["?", "this help"],
];
const legend = [["crash", "crash-consistent"], ...markWords] as const;

class Page {
  readonly #model = new Model(ask);
  readonly #main = byId("main");
  readonly #search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search disks" });
  readonly #attention = new Attention((disk) => this.#open(disk));
  readonly #list: DiskList;
  readonly #count = h("span", { class: "sub", role: "status" });
  readonly #vaults = new VaultsView();
  readonly #failovers: FailoversView;
  readonly #events = new EventsView();
  readonly #mayAct: boolean;
  #choice: Choice = { text: "", health: "", order: "group" };
  #spanMs = Number(localStorage.getItem("tidemark-span") ?? 120 * minute);
  #view: View | undefined;
  #details: Details | undefined;
  #isWaiting = false;

  constructor(mayAct: boolean) {
    this.#mayAct = mayAct;
    this.#failovers = new FailoversView(mayAct ? cleanupOf : undefined);
    this.#list = new DiskList({
      scroller: this.#main,
      data: (disk) => this.#model.data(disk),
      onOpen: (disk) => this.#open(disk),
      span: () => this.#span(),
    });
    this.#model.onLoaded = () => this.#soon();
    this.#search.addEventListener("input", () => this.#choose({ text: this.#search.value }));
    this.#main.addEventListener("scroll", () => this.#soon(), { passive: true });
    window.addEventListener("resize", () => this.#soon());
    window.addEventListener("hashchange", () => this.#show());
    window.addEventListener("keydown", (event) => this.#onKey(event));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      forgetColours();
      this.#soon();
    });
    document.addEventListener("visibilitychange", () => this.#soon());
    byId("help").addEventListener("click", () => showHelp());
    this.#show();
  }

  /** Follows the agent until the page is closed. */
  async run(): Promise<never> {
    return await follow({
      onEvent: (event, data) => {
        if (event === "status") this.#takeStatus(data as AgentStatus);
        else if (this.#model.takeEntry(data as LogEntry)) this.#events.add(data as LogEntry);
      },
      onLost: ({ message }) => {
        this.#model.doubt();
        document.body.classList.add("lost");
        setText(byId("live"), `no connection: ${message}`);
      },
    });
  }

  #takeStatus(status: AgentStatus): void {
    this.#model.takeStatus(status, Date.now());
    document.body.classList.remove("lost");
    setText(byId("live"), "live");
    this.#soon();
  }

  /** Draws at the next frame, once. A page that is not to be seen is not drawn. */
  #soon(): void {
    if (this.#isWaiting || document.hidden) return;
    this.#isWaiting = true;
    requestAnimationFrame(() => {
      this.#isWaiting = false;
      this.#draw();
    });
  }

  #draw(): void {
    const { status } = this.#model;
    if (status === undefined) return;
    setText(byId("agent"), agentWords(status));
    this.#drawHealth(status);
    switch (this.#view) {
      case "disks": {
        this.#attention.update(status);
        const rows = rowsOf(status.disks, this.#choice);
        const count = rows.filter(({ kind }) => kind === "disk").length;
        setText(this.#count, countWords(count, status.disks.length));
        this.#list.setRows(rows);
        break;
      }
      case "vaults":
        this.#vaults.update(status);
        break;
      case "failovers":
        this.#failovers.update(status);
        break;
      case "events":
      case undefined:
        break;
    }
    this.#details?.update();
  }

  #drawHealth({ disks }: AgentStatus): void {
    const place = byId("health");
    const levels: readonly Health[] = ["Critical", "Warning", "Normal"];
    if (place.childElementCount === 0) {
      for (const level of levels) {
        const press = (): void => this.#choose({ health: this.#choice.health === level ? "" : level });
        place.append(h("button", { type: "button", click: press }, healthMark(level), h("span", {})));
      }
    }
    for (const [index, level] of levels.entries()) {
      const button = place.children[index];
      const count = disks.filter(({ health }) => health === level).length;
      const text = button?.lastElementChild;
      if (button === undefined || text === null || text === undefined) continue;
      setText(text, String(count));
      button.setAttribute("aria-pressed", String(this.#choice.health === level));
      button.setAttribute("aria-label", `${count} ${level}`);
      button.classList.toggle("none", count === 0);
    }
  }

  #span(): Span {
    const [name = ""] = spans.find(([, spanMs]) => spanMs === this.#spanMs) ?? [];
    return { name, fromMs: this.#model.statusAtMs - this.#spanMs, toMs: this.#model.statusAtMs };
  }

  #choose(choice: Partial<Choice>): void {
    this.#choice = { ...this.#choice, ...choice };
    if (this.#view !== "disks") location.hash = "#disks";
    this.#main.scrollTop = 0;
    this.#soon();
  }

  #show(): void {
    const view = views.find((name) => `#${name}` === location.hash) ?? "disks";
    // To build a view again would take its focus.
    if (view === this.#view) return;
    this.#view = view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const elements: Readonly<Record<View, () => readonly Node[]>> = {
      disks: () => [this.#attention.element, this.#toolbar(), this.#list.element],
      vaults: () => [this.#vaults.element],
      failovers: () => [this.#failovers.element],
      events: () => [this.#events.element],
    };
    this.#main.replaceChildren(...elements[view]());
    this.#main.scrollTop = 0;
    this.#draw();
  }

  #toolbar(): HTMLElement {
    const order = h("select", {
      "aria-label": "Order",
      change: () => this.#choose({ order: order.value as Choice["order"] }),
    });
    for (const [value, name] of orders)
      order.append(h("option", { value, selected: value === this.#choice.order }, name));
    const span = h("fieldset", { class: "span" }, h("legend", { class: "hidden" }, "Time that the points show"));
    for (const [name, spanMs] of spans) {
      const press = (): void => {
        this.#spanMs = spanMs;
        localStorage.setItem("tidemark-span", String(spanMs));
        this.#soon();
      };
      const input = h("input", { type: "radio", name: "span", checked: spanMs === this.#spanMs, change: press });
      span.append(h("label", {}, input, h("span", {}, name)));
    }
    const marks = legend.map(([kind, what]) =>
      h("li", {}, h("span", { class: `key ${kind}`, "aria-hidden": "true" }), what),
    );
    return h(
      "div",
      { class: "toolbar" },
      this.#search,
      order,
      span,
      this.#count,
      h("ul", { class: "legend", "aria-label": "Marks of points" }, ...marks),
    );
  }

  #open(disk: string): void {
    if (this.#details !== undefined) return;
    this.#details = openDetails(disk, this.#model, {
      mayAct: this.#mayAct,
      span: () => this.#span(),
      onClose: () => {
        this.#details = undefined;
        this.#list.focus();
      },
    });
  }

  #onKey(event: KeyboardEvent): void {
    const { target, key } = event;
    const isTyping = target instanceof HTMLInputElement || target instanceof HTMLSelectElement;
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") !== null)
      return;
    const view = views[Number(key) - 1];
    if (view !== undefined) location.hash = `#${view}`;
    else if (key === "/") {
      event.preventDefault();
      location.hash = "#disks";
      this.#show();
      this.#search.focus();
    } else if (key === "?") showHelp();
    else if ((key === "ArrowDown" || key === "j") && (target === document.body || target === this.#main))
      this.#list.focus();
  }
}

function showHelp(): void {
  const rows = keys.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)));
  const dialog = h(
    "dialog",
    { class: "confirm", "aria-labelledby": "keys-title", close: () => dialog.remove() },
    h("h2", { id: "keys-title" }, "Keys"),
    h("dl", { class: "facts" }, ...rows),
    h(
      "p",
      { class: "buttons" },
      h("button", { type: "button", class: "primary", click: () => dialog.close() }, "Close"),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

interface AccessAnswer {
  readonly access: "none" | "look" | "act";
}

/** Asks for the token until the agent takes it. */
async function enter(): Promise<boolean> {
  for (let attempt = 0; ; attempt += 1) {
    const { access } = await ask<AccessAnswer>("/v1/access");
    if (access !== "none") return access === "act";
    keepToken(await askForToken(attempt > 0));
  }
}

async function askForToken(isRepeated: boolean): Promise<string> {
  const input = h("input", { type: "password", id: "token", required: true, autocomplete: "current-password" });
  const note = isRepeated
    ? "The agent does not take this token."
    : "It stands in the file that `dashboard.token` names.";
  return await new Promise((resolve) => {
    const form = h(
      "form",
      {
        class: "card token",
        submit: (event) => {
          event.preventDefault();
          resolve(input.value.trim());
        },
      },
      h("h2", {}, h("label", { for: "token" }, "Token of the dashboard")),
      input,
      h("p", { class: "sub", role: "status" }, note),
      h("p", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Enter")),
    );
    byId("main").replaceChildren(form);
    setText(byId("live"), "locked");
    input.focus();
  });
}

async function begin(): Promise<void> {
  for (;;) {
    try {
      const mayAct = await enter();
      await new Page(mayAct).run();
    } catch (error) {
      const { message } = error as ApiError;
      setText(byId("live"), `no connection: ${message}`);
      await new Promise((resolve) => setTimeout(resolve, 2_000));
    }
  }
}

void begin();
