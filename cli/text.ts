/** Text on a terminal: columns that align, and names that cannot garble it. */

/** Control characters, and those that change the direction of writing. */
const unprintable = /[\p{Cc}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** Emoji and the scripts whose characters fill two columns. */
const wide =
  /\p{Emoji_Presentation}|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303e\uff01-\uff60]/u;

/** Texts whose characters stand alone and fill one column each: letters of Europe, punctuation, arrows, lines. */
const narrow = /^[\x20-\x7e\u00a0-\u02ff\u2010-\u2027\u2190-\u21ff\u2500-\u259f]*$/;

let segmenter: Intl.Segmenter | undefined;

/** What a reader takes for one character each. To make the segmenter takes a tenth of a command's start. */
function graphemesOf(text: string): Iterable<{ readonly segment: string }> {
  if (narrow.test(text)) return Array.from(text, (segment) => ({ segment }));
  segmenter ??= new Intl.Segmenter("en", { granularity: "grapheme" });
  return segmenter.segment(text);
}

/** `text` in one line: characters that a terminal would act on are spelled `\u{…}`. */
export function printable(text: string): string {
  return text.replace(unprintable, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`);
}

/** The lines of what a command printed. */
export function linesOf(text: string): readonly string[] {
  const whole = text.trimEnd();
  return whole === "" ? [] : whole.split("\n");
}

/** Columns that `text` fills on a terminal. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const { segment } of graphemesOf(text)) width += wide.test(segment) ? 2 : 1;
  return width;
}

/** The first `columns` columns of `text`. */
export function cut(text: string, columns: number): string {
  let taken = "";
  let width = 0;
  for (const { segment } of graphemesOf(text)) {
    width += wide.test(segment) ? 2 : 1;
    if (width > columns) break;
    taken += segment;
  }
  return taken;
}

/** A sequence that colours text. It fills no column. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: it begins with the control character
const colouring = /(\u001b\[[\d;]*m)/;

/** `text` in rows of at most `columns` columns, as a terminal breaks it. Colours count nothing. */
export function rowsOf(text: string, columns: number): readonly string[] {
  const rows: string[] = [];
  let row = "";
  let room = columns;
  for (const [index, part] of text.split(colouring).entries()) {
    if (index % 2 === 1) row += part;
    else {
      for (let rest = part; rest !== ""; ) {
        const taken = cut(rest, room);
        row += taken;
        room -= displayWidth(taken);
        rest = rest.slice(taken.length);
        if (rest === "" || (taken === "" && room === columns)) break;
        rows.push(row);
        [row, room] = ["", columns];
      }
    }
  }
  return [...rows, row];
}

/** Columns of a table whose rows are made of `Row`. */
export interface Column<Row> {
  readonly heading: string;
  readonly align: "l" | "r";
  /** Columns are left out in this order, 1 first, until lines fit. Absent: never. */
  readonly dropped?: number;
  /** A row that has nothing to say gives `-`. */
  readonly cell: (row: Row) => string;
  /** Colours a cell after it has been padded. */
  readonly paint?: (padded: string, row: Row) => string;
}

/** Columns that the first column of a table keeps when it is shortened. */
const firstColumnMin = 8;

/**
 * A table in at most `width` columns: a column that says `-` in all rows is left out, then columns
 * in the order of `dropped`, then the first column is shortened.
 */
export function fittedTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[], width: number): string {
  let kept = columns.filter(({ cell }) => rows.some((row) => cell(row) !== "-"));
  const cells = (): string[][] => rows.map((row) => kept.map(({ cell }) => printable(cell(row))));
  let widths = columnWidths(kept, cells());
  const excess = (): number => widths.reduce((sum, columnWidth) => sum + columnWidth, 2 * (widths.length - 1)) - width;
  for (let order = 1; excess() > 0 && kept.some(({ dropped = 0 }) => dropped >= order); order += 1) {
    kept = kept.filter(({ dropped }) => dropped !== order);
    widths = columnWidths(kept, cells());
  }
  const [first = 0, ...others] = widths;
  widths = [Math.max(Math.min(first, firstColumnMin), first - Math.max(excess(), 0)), ...others];
  const line = (texts: readonly string[], row?: Row): string =>
    texts
      .map((text, index) => {
        const padded = pad(shortened(text, widths[index] ?? 0), widths[index] ?? 0, kept[index]?.align ?? "l");
        return row === undefined ? padded : (kept[index]?.paint?.(padded, row) ?? padded);
      })
      .join("  ")
      .trimEnd();
  const body = cells();
  return [line(kept.map(({ heading }) => heading)), ...rows.map((row, index) => line(body[index] ?? [], row))].join(
    "\n",
  );
}

function columnWidths<Row>(columns: readonly Column<Row>[], cells: readonly (readonly string[])[]): number[] {
  return columns.map(({ heading }, index) =>
    Math.max(displayWidth(heading), ...cells.map((row) => displayWidth(row[index] ?? ""))),
  );
}

/** The text, or as much of its beginning as fits. */
export function shortened(text: string, width: number): string {
  return displayWidth(text) <= width ? text : `${cut(text, width - 1)}…`;
}

function pad(text: string, width: number, align: "l" | "r"): string {
  const gap = " ".repeat(Math.max(width - displayWidth(text), 0));
  return align === "r" ? gap + text : text + gap;
}

/**
 * Rows under a heading, two spaces between columns. `align` has one letter a column: `l` or `r`.
 */
export function table(heading: readonly string[], rows: readonly (readonly string[])[], align: string): string {
  const all = [heading, ...rows.map((row) => row.map(printable))];
  const widths = heading.map((_, column) => Math.max(...all.map((row) => displayWidth(row[column] ?? ""))));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => pad(cell, widths[column] ?? 0, align[column] === "r" ? "r" : "l"))
      .join("  ")
      .trimEnd();
  return all.map(line).join("\n");
}

/**
 * `name  value` lines with the values in one column. With `columns`, a value is broken at spaces into
 * lines that end there; a word is never broken.
 */
export function fields(pairs: readonly (readonly [name: string, value: string])[], columns?: number): string {
  const width = Math.max(...pairs.map(([name]) => name.length));
  const room = (columns ?? Number.POSITIVE_INFINITY) - width - 4;
  return pairs
    .flatMap(([name, value]) =>
      brokenAtSpaces(printable(value), room).map(
        (text, line) => `  ${(line === 0 ? name : "").padEnd(width)}  ${text}`,
      ),
    )
    .join("\n");
}

function brokenAtSpaces(text: string, columns: number): readonly string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && displayWidth(last) + 1 + displayWidth(word) <= columns)
      lines.push(`${lines.pop()} ${word}`);
    else lines.push(word);
  }
  return lines;
}
