/**
 * Prints what the last run with `--coverage` covered: the share of each wing, and the files below
 * 90 % of their lines. Fails never: coverage is a report.
 */
import { readFileSync } from "node:fs";
import { relative } from "node:path";

const reportedBelowPercent = 90;

const { total, ...files } = JSON.parse(readFileSync("coverage/coverage-summary.json", "utf8"));
const wings = new Map();
const below = [];
for (const [path, { lines }] of Object.entries(files)) {
  const name = relative(".", path);
  const wing = /^engine\/[^/]+(?=\/)|^[^/]+/.exec(name)?.[0];
  const sum = wings.get(wing) ?? { covered: 0, total: 0 };
  wings.set(wing, { covered: sum.covered + lines.covered, total: sum.total + lines.total });
  if (lines.total > 0 && lines.pct < reportedBelowPercent) below.push(`${percent(lines)}  ${name}`);
}
console.log(`lines covered: ${percent(total.lines).trim()} of ${total.lines.total}`);
for (const [wing, lines] of [...wings].sort()) console.log(`${percent(lines)}  ${wing}`);
console.log(`files below ${reportedBelowPercent} %:`);
for (const line of below.sort()) console.log(line);

function percent({ covered, total: all }) {
  return `${((100 * covered) / Math.max(1, all)).toFixed(1)} %`.padStart(7);
}
