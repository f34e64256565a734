/**
 * Canvases of the page: lines of a series, and timelines of points. Colours are those of the style
 * sheet, read again when the scheme changes.
 */
import type { Sample } from "../history.ts";
import { marks, type PointColumns } from "./points.ts";

const names = ["line", "fill", "axis", "crash", "app", "group", "pinned", "proved", "damaged", "dropped"] as const;
type Palette = Readonly<Record<(typeof names)[number], string>>;
let palette: Palette | undefined;

/** Colours are read again at the next drawing. */
export function forgetColours(): void {
  palette = undefined;
}

function colours(): Palette {
  if (palette === undefined) {
    const style = getComputedStyle(document.documentElement);
    const of = (name: keyof Palette): string => style.getPropertyValue(`--plot-${name}`).trim();
    palette = Object.fromEntries(names.map((name) => [name, of(name)] as const)) as Record<keyof Palette, string>;
  }
  return palette;
}

/** The context of a canvas that has as many pixels as the screen, scaled to CSS pixels. Undefined: it is not shown. */
function prepared(
  canvas: HTMLCanvasElement,
): { readonly context: CanvasRenderingContext2D; readonly width: number; readonly height: number } | undefined {
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = canvas.getContext("2d");
  if (width === 0 || height === 0 || context === null) return undefined;
  const ratio = window.devicePixelRatio;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide) canvas.width = wide;
  if (canvas.height !== high) canvas.height = high;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** The largest value of a series that is shown; at least 1. */
export function peakOf(samples: readonly Sample[], column: 0 | 1 | 2): number {
  return Math.max(1, ...samples.map((sample) => sample[column] ?? 0));
}

/** Draws one column of the samples from the left to the right edge, from 0 to `peak`. */
export function drawSeries(
  canvas: HTMLCanvasElement,
  samples: readonly Sample[],
  column: 0 | 1 | 2,
  slots: number,
): void {
  const area = prepared(canvas);
  if (area === undefined) return;
  const { context, width, height } = area;
  const { line, fill, axis } = colours();
  context.fillStyle = axis;
  context.fillRect(0, height - 1, width, 1);
  const peak = peakOf(samples, column);
  const x = (index: number): number =>
    width - 1 - ((samples.length - 1 - index) * (width - 2)) / Math.max(slots - 1, 1);
  const y = (value: number): number => height - 1 - (value / peak) * (height - 4);
  let start: number | undefined;
  const finish = (end: number): void => {
    if (start === undefined) return;
    context.beginPath();
    for (let index = start; index < end; index += 1) context.lineTo(x(index), y(samples[index]?.[column] ?? 0));
    context.strokeStyle = line;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(x(end - 1), height);
    context.lineTo(x(start), height);
    context.fillStyle = fill;
    context.fill();
    start = undefined;
  };
  for (let index = 0; index < samples.length; index += 1) {
    if (samples[index]?.[column] === null) finish(index);
    else start ??= index;
  }
  finish(samples.length);
}

/**
 * Draws points from `fromMs` to `toMs`. A point of a group reaches from edge to edge, so that the rows
 * of its disks show one line.
 */
export function drawTimeline(
  canvas: HTMLCanvasElement,
  points: PointColumns | undefined,
  { fromMs, toMs }: { readonly fromMs: number; readonly toMs: number },
): void {
  const area = prepared(canvas);
  if (area === undefined) return;
  const { context, width, height } = area;
  const colour = colours();
  const middle = Math.round(height / 2);
  context.fillStyle = colour.axis;
  context.fillRect(0, middle, width, 1);
  if (points === undefined) return;
  const pixels = points.pixels(fromMs, toMs, Math.floor(width / 2));
  const bar = (at: number, fill: string, half: number): void => {
    context.fillStyle = fill;
    context.fillRect(2 * at, middle - half, 2, 2 * half + 1);
  };
  const [low, high] = [Math.round(height / 12), Math.round(height / 3)];
  for (const [at, bits] of pixels.entries()) {
    if (bits === 0) continue;
    const has = (mark: keyof typeof marks): boolean => (bits & marks[mark]) !== 0;
    if (has("group")) bar(at, colour.group, height);
    if (has("dropped")) bar(at, colour.dropped, low);
    else if (has("app")) bar(at, colour.app, high);
    else bar(at, colour.crash, has("fuzzy") ? low / 2 : low);
    if (has("proved")) {
      context.fillStyle = colour.proved;
      context.fillRect(2 * at, height - 3, 2, 2);
    }
    if (has("pinned")) {
      context.fillStyle = colour.pinned;
      context.beginPath();
      context.arc(2 * at + 0.75, 4, 3, 0, 7);
      context.fill();
    }
    if (has("damaged")) {
      bar(at, colour.damaged, height);
      context.fillRect(2 * at - 3, middle - 1, 8, 3);
    }
  }
}
