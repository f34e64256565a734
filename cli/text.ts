/** Text on a terminal: columns that align, and names that cannot garble it. */

/** Control characters, and those that turn the direction of writing. */
const unprintable = /[\p{Cc}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** Emoji and the scripts whose characters fill two columns. */
const wide = /\p{Emoji_Presentation}|[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303e\uff01-\uff60]/u;

const graphemes = new Intl.Segmenter("en", { granularity: "grapheme" });

/** `text` in one line: what a terminal would obey rather than show is spelled `\u{…}`. */
export function printable(text: string): string {
  return text.replace(unprintable, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`);
}

/** Columns that `text` fills on a terminal. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const { segment } of graphemes.segment(text)) width += wide.test(segment) ? 2 : 1;
  return width;
}

/** The first `columns` columns of `text`. */
export function cut(text: string, columns: number): string {
  let taken = "";
  let width = 0;
  for (const { segment } of graphemes.segment(text)) {
    width += wide.test(segment) ? 2 : 1;
    if (width > columns) break;
    taken += segment;
  }
  return taken;
}

/** Rows under a heading, two spaces between columns. `align` has one letter a column: `l` or `r`. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[], align: string): string {
  const all = [heading, ...rows.map((row) => row.map(printable))];
  const widths = heading.map((_, column) => Math.max(...all.map((row) => displayWidth(row[column] ?? ""))));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => {
        const gap = " ".repeat((widths[column] ?? 0) - displayWidth(cell));
        return align[column] === "r" ? gap + cell : cell + gap;
      })
      .join("  ")
      .trimEnd();
  return all.map(line).join("\n");
}

/** `name  value` lines with the values in one column. */
export function fields(pairs: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length));
  return pairs.map(([name, value]) => `  ${name.padEnd(width)}  ${printable(value)}`).join("\n");
}
