/**
 * Two kinds of chart as SVG, by hand: lines, and bars of stacked parts. They read on light and dark pages, and need nothing
 * beside themselves.
 *
 * @module
 */
import { formatNumber } from "./table.ts";

/** An axis. */
export interface Axis {
  readonly label: string;
  readonly log?: boolean;
  /** Where marks stand; chosen unless given. */
  readonly ticks?: readonly number[];
  /** Least and greatest value; the data's, and on a linear axis 0, unless given. */
  readonly range?: readonly [number, number];
}

/** A line. */
export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
  /** Whether the line is dashed: a limit, or another's figures. */
  readonly dashed?: boolean;
  /** Whether points are marked. */
  readonly marked?: boolean;
}

/** A chart of lines. */
export interface LineChart {
  readonly title: string;
  readonly subtitle?: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
}

/** A bar of parts. */
export interface Bar {
  readonly label: string;
  readonly parts: readonly { readonly name: string; readonly value: number }[];
}

/** A chart of bars; parts of one name have one colour. */
export interface BarChart {
  readonly title: string;
  readonly subtitle?: string;
  readonly unit: string;
  readonly bars: readonly Bar[];
}

const WIDTH = 760;
const LINE_HEIGHT = 400;
const MARGIN = { left: 72, right: 24, top: 84, bottom: 52 };
/** Okabe and Ito's colours, which people tell apart however they see them, and four more. */
const COLOURS = [
  ...["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#7f7f7f"],
  ...["#5b4fa2", "#a6341b", "#3d8b7d", "#b0a1ce"],
];
const STYLE = `<style>
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 16px; font-weight: 600 } .dim { fill: #777 }
.grid { stroke: #ddd } .page { fill: #fff } .inside { fill: #fff; font-size: 11px }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .dim { fill: #999 } .grid { stroke: #3a3a3a } .page { fill: #161b22 } }
</style>`;

/** A chart of lines, as the text of an SVG file. */
export function lineChart({ title, subtitle, x, y, series }: LineChart): string {
  const shown = series.filter(({ points }) => points.length > 0);
  const values = (axis: 0 | 1): number[] => shown.flatMap(({ points }) => points.map((point) => point[axis]));
  const across = scale(x, values(0), MARGIN.left, WIDTH - MARGIN.right);
  const up = scale(y, values(1), LINE_HEIGHT - MARGIN.bottom, MARGIN.top);
  const bottom = LINE_HEIGHT - MARGIN.bottom;
  const parts = [
    ...up.ticks.flatMap((tick) => {
      const at = up.place(tick);
      return [
        line(MARGIN.left, at, WIDTH - MARGIN.right, at),
        text(MARGIN.left - 8, at + 4, formatNumber(tick), "end"),
      ];
    }),
    ...across.ticks.flatMap((tick) => {
      const at = across.place(tick);
      return [line(at, bottom, at, bottom + 5), text(at, bottom + 20, formatNumber(tick), "middle")];
    }),
    text((MARGIN.left + WIDTH - MARGIN.right) / 2, LINE_HEIGHT - 10, x.label, "middle"),
    text(MARGIN.left - 8, MARGIN.top - 12, y.label, "middle"),
    ...shown.map((one, index) => {
      const colour = COLOURS[index % COLOURS.length]!;
      const places = one.points.map(([px, py]) => [across.place(px).toFixed(1), up.place(py).toFixed(1)]);
      const path = places.map(([px, py], i) => `${i === 0 ? "M" : "L"}${px} ${py}`).join("");
      const dash = one.dashed ? ' stroke-dasharray="6 4"' : "";
      const marks = one.marked
        ? places.map(([px, py]) => `<circle cx="${px}" cy="${py}" r="3.5" fill="${colour}"/>`).join("")
        : "";
      return `<path d="${path}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>${marks}`;
    }),
    legend(shown.map(({ name }) => name)),
  ];
  return page(LINE_HEIGHT, title, subtitle, parts);
}

/** A chart of bars, as the text of an SVG file. */
export function barChart({ title, subtitle, unit, bars }: BarChart): string {
  const names = [...new Set(bars.flatMap(({ parts }) => parts.map(({ name }) => name)))];
  const total = ({ parts }: Bar): number => parts.reduce((sum, { value }) => sum + value, 0);
  const left = 24 + 7 * Math.max(...bars.map(({ label }) => label.length)), rows = legendRows(names);
  const top = MARGIN.top + 18 * (rows - 1), step = 44, height = top + step * bars.length + MARGIN.bottom;
  const across = scale({ label: unit }, bars.map(total), left, WIDTH - 64);
  const parts = bars.flatMap((bar, row) => {
    const y = top + step * row;
    let at = 0;
    const pieces = bar.parts.map(({ name, value }) => {
      const from = across.place(at), width = across.place(at += value) - from;
      const colour = COLOURS[names.indexOf(name) % COLOURS.length]!;
      const number = width > 34 ? text(from + width / 2, y + 20, formatNumber(value), "middle", "inside") : "";
      const hint = `<title>${escape(`${name}: ${formatNumber(value)} ${unit}`)}</title>`;
      const box = `x="${from.toFixed(1)}" y="${y}" width="${width.toFixed(1)}" height="32"`;
      return `<rect ${box} fill="${colour}">${hint}</rect>${number}`;
    });
    const sum = text(across.place(at) + 6, y + 20, formatNumber(total(bar)));
    return [text(left - 8, y + 20, bar.label, "end"), ...pieces, sum];
  });
  const bottom = top + step * bars.length;
  const ticks = across.ticks.flatMap((tick) => {
    const at = across.place(tick);
    return [line(at, top - 6, at, bottom), text(at, bottom + 16, formatNumber(tick), "middle")];
  });
  const label = text((left + WIDTH - 64) / 2, height - 12, unit, "middle");
  return page(height, title, subtitle, [...ticks, ...parts, label, legend(names)]);
}

interface Scale {
  readonly ticks: readonly number[];
  place(value: number): number;
}

function scale({ log, ticks, range }: Axis, values: readonly number[], from: number, to: number): Scale {
  const positive = log ? values.filter((value) => value > 0) : [...values, 0];
  let [low, high] = range ?? [Math.min(...positive), Math.max(...positive)];
  if (!(high > low)) [low, high] = log ? [low / 2, low * 2] : [low, low + 1];
  if (!range && !log) high = niceStep(high - low) * Math.ceil(high / niceStep(high - low));
  const on = (value: number): number => log ? Math.log(Math.max(value, low)) : value;
  const place = (value: number): number => from + (to - from) * (on(value) - on(low)) / (on(high) - on(low));
  return { place, ticks: ticks ?? (log ? logTicks(low, high) : linearTicks(low, high)) };
}

function niceStep(span: number): number {
  const power = 10 ** Math.floor(Math.log10(span / 5)), step = span / 5 / power;
  return power * (step <= 1 ? 1 : step <= 2 ? 2 : step <= 5 ? 5 : 10);
}

function linearTicks(low: number, high: number): number[] {
  const step = niceStep(high - low), first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** 1, 2 and 5 of each power of ten, or the powers alone where there are many. */
function logTicks(low: number, high: number): number[] {
  const powers = Array.from({ length: 24 }, (_, i) => 10 ** (i - 9));
  const factors = high / low > 3000 ? [1] : [1, 2, 5];
  const all = powers.flatMap((power) => factors.map((factor) => factor * power));
  return all.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

/** Where each name stands: from left to right, in as many rows as it takes. */
function legendPlaces(names: readonly string[]): [x: number, row: number][] {
  let x = MARGIN.left, row = 0;
  return names.map((name) => {
    const width = 24 + 7 * name.length;
    if (x > MARGIN.left && x + width > WIDTH - MARGIN.right) [x, row] = [MARGIN.left, row + 1];
    return [(x += width) - width, row];
  });
}

function legendRows(names: readonly string[]): number {
  return 1 + Math.max(0, ...legendPlaces(names).map(([, row]) => row));
}

function legend(names: readonly string[]): string {
  return legendPlaces(names).map(([x, row], index) => {
    const y = 58 + 18 * row;
    return `<rect x="${x}" y="${y - 9}" width="10" height="10" fill="${COLOURS[index % COLOURS.length]}"/>` +
      text(x + 15, y, names[index]!);
  }).join("");
}

function page(height: number, title: string, subtitle: string | undefined, parts: readonly string[]): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img">
${STYLE}
<rect class="page" width="${WIDTH}" height="${height}"/>
${text(MARGIN.left, 24, title, "start", "title")}${subtitle ? text(MARGIN.left, 40, subtitle, "start", "dim") : ""}
${parts.join("\n")}
</svg>
`;
}

function line(x1: number, y1: number, x2: number, y2: number): string {
  const [a, b, c, d] = [x1, y1, x2, y2].map((value) => value.toFixed(1));
  return `<line class="grid" x1="${a}" y1="${b}" x2="${c}" y2="${d}"/>`;
}

function text(x: number, y: number, content: string, anchor = "start", style = ""): string {
  const place = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"`;
  return `<text ${place}${style && ` class="${style}"`}>${escape(content)}</text>`;
}

function escape(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
