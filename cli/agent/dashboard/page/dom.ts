/**
 * Building and changing the page. Text is only ever set as text, so no name of a disk can become
 * markup.
 */

type Property = string | number | boolean | ((event: Event) => void) | undefined;

/** An element. A function is a listener, `true` an empty attribute, `false` and undefined none. */
export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  properties: Readonly<Record<string, Property>> = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/** Sets a text that differs, so that nothing is laid out anew for one that does not. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element: Element, name: string, value: string): void {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** The element with an id that index.html has. */
export function byId(id: string): HTMLElement {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no ${id}`);
  return element;
}

const healthMarks = { Normal: "●", Warning: "▲", Critical: "■" } as const;
export type Health = keyof typeof healthMarks;

/** Shape and colour of a level; its name is there for screen readers. */
export function healthMark(level: Health): HTMLElement {
  const mark = h("span", { class: `mark ${level}`, role: "img", "aria-label": level }, healthMarks[level]);
  return mark;
}

export function setHealth(mark: HTMLElement, level: Health): void {
  setText(mark, healthMarks[level]);
  setAttribute(mark, "class", `mark ${level}`);
  setAttribute(mark, "aria-label", level);
}

/** A heading, and terms with their values. */
export function facts(pairs: readonly (readonly [term: string, value: string])[]): HTMLElement {
  return h(
    "dl",
    { class: "facts" },
    ...pairs.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
  );
}
