/**
 * Actions with confirmation. The dialog says what will happen; what has become of it is told below,
 * because a point or a failover may take minutes.
 */
import { byId, h } from "./dom.ts";
import { ask, RequestFailed } from "./feed.ts";

interface FieldOfAction {
  readonly name: string;
  readonly label: string;
  readonly hint: string;
  readonly value?: string;
}

export interface Action {
  readonly title: string;
  /** What will happen. */
  readonly text: string;
  /** The word on the button. */
  readonly verb: string;
  readonly fields?: readonly FieldOfAction[];
  readonly path: string;
  readonly body: (values: Readonly<Record<string, string>>) => object;
  /** What has happened, from the answer. */
  readonly done: (answer: unknown) => string;
}

/** Asks, acts, and tells what has become of it. */
export function offer(action: Action): void {
  const { title, text, verb, fields = [] } = action;
  const inputs = fields.map(({ name, label, hint, value = "" }) => {
    const input = h("input", { name, value, required: true, autocomplete: "off", "aria-describedby": `hint-${name}` });
    return { input, label: h("label", {}, label, input, h("span", { class: "sub", id: `hint-${name}` }, hint)) };
  });
  const dialog = h(
    "dialog",
    { class: "confirm", "aria-labelledby": "confirm-title", close: () => dialog.remove() },
    h(
      "form",
      {
        method: "dialog",
        submit: () => void act(action, Object.fromEntries(inputs.map(({ input }) => [input.name, input.value.trim()]))),
      },
      h("h2", { id: "confirm-title" }, title),
      h("p", {}, text),
      ...inputs.map(({ label }) => label),
      h(
        "p",
        { class: "buttons" },
        h("button", { type: "button", click: () => dialog.close() }, "Cancel"),
        h("button", { type: "submit", class: "primary" }, verb),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

async function act(action: Action, values: Readonly<Record<string, string>>): Promise<void> {
  const told = toast(`${action.title}: asked`, "busy");
  try {
    const answer = await ask<unknown>(action.path, action.body(values));
    told.replace(action.done(answer), "done");
  } catch (error) {
    if (!(error instanceof RequestFailed)) throw error;
    const { message, remedy, code } = error.error;
    told.replace(`${action.title}: ${message} (${code}). ${remedy}`, "failed");
  }
}

interface Toast {
  readonly replace: (text: string, kind: "done" | "failed") => void;
}

/** A line that goes away by itself when it says that something went well. */
function toast(text: string, kind: "busy"): Toast {
  const line = h("span", {}, text);
  const dismiss = h("button", {
    type: "button",
    class: "quiet",
    "aria-label": "Dismiss",
    click: () => element.remove(),
  });
  dismiss.append("✕");
  const element = h("div", { class: `toast ${kind}` }, line, dismiss);
  placeToasts();
  byId("toasts").append(element);
  return {
    replace: (next, nextKind) => {
      line.textContent = next;
      element.className = `toast ${nextKind}`;
      if (nextKind === "done") setTimeout(() => element.remove(), 8_000);
    },
  };
}

/** What lies outside of an open dialog can be neither seen nor reached. */
export function placeToasts(): void {
  (document.querySelector("dialog.details[open]") ?? document.body).append(byId("toasts"));
}
