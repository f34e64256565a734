/**
 * Reports as one page of HTML without scripts and without a request: light and dark by the reader's
 * preference, and printable.
 *
 * Invariant: every text of a user, a command or the vault is escaped.
 */

const style = `:root{color-scheme:light dark;background:light-dark(#fff,#14181d);font:15px/1.5 system-ui,sans-serif}
body{max-width:60rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;break-after:avoid}h3{font-size:1rem}
.wide{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #8884}th{white-space:nowrap}
.figures :is(td,th)+*{text-align:right;white-space:nowrap}
pre,code{white-space:pre-wrap;overflow-wrap:anywhere}
.yes,.sound{color:light-dark(#126b2c,#5c8)}.no,.failed,.damaged{color:light-dark(#b3261e,#f88)}
svg{display:block;width:100%;min-width:34rem;height:auto}svg text{font-size:11px;fill:currentColor}
.grid{stroke:#8885}.line{fill:none;stroke:light-dark(#0b62c4,#6af);stroke-width:1.5;stroke-linejoin:round}
@media print{body{margin:0}svg,tr{break-inside:avoid}}`;

/** A page; `body` is HTML, `title` text. `own` adds to the style. */
export function htmlPage(title: string, body: string, own = ""): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${escaped(title)}</title><style>${style}${own}</style></head><body><main>
${body}
</main></body></html>
`;
}

/** A table of HTML, which scrolls where it is too wide. `kind` is a class of the style. */
export function htmlTable(heads: readonly string[], rows: readonly (readonly string[])[], kind = ""): string {
  const row = (tag: "td" | "th", cells: readonly string[]): string =>
    `<tr>${cells.map((cell) => `<${tag}>${cell}</${tag}>`).join("")}</tr>`;
  const all = [...(heads.length === 0 ? [] : [row("th", heads)]), ...rows.map((cells) => row("td", cells))];
  return `<div class="wide" tabindex="0"><table class="${kind}">${all.join("\n")}</table></div>`;
}

/** A table of texts: names, and figures behind them. */
export function figuresTable(heads: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  return htmlTable(
    heads,
    rows.map((cells) => cells.map((cell) => escaped(String(cell)))),
    "figures",
  );
}

/** A plot, which scrolls where it is too wide. `parts` is SVG, `label` text. */
export function htmlPlot(width: number, height: number, label: string, parts: string): string {
  const view = `viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(label)}"`;
  return `<div class="wide" tabindex="0"><svg ${view}>${parts}</svg></div>`;
}

/** Text as HTML, without control characters. */
export function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`).replace(/[^\P{Cc}\n\t]/gu, "�");
}
