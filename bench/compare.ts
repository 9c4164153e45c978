/**
 * Holds two files of results side by side, and marks what moved beyond the noise.
 *
 * Lines of the two that measured the same thing stand beside each other; of several the last counts. Noise is half the middle
 * half of both measurements where a result has its quartiles, 3% at least. What was measured a few times only is not judged:
 * a figure of one run says nothing of the next one.
 *
 * @module
 */
import { BenchArguments, runBench, UsageError } from "./arguments.ts";
import { readResults } from "./result.ts";
import type { Summary } from "./statistics.ts";
import { formatNumber, formatTable } from "./table.ts";

const USAGE = "deno task bench:compare bench/results/A.jsonl bench/results/B.jsonl";

type Line = Record<string, unknown>;

/** What says that two lines measured the same. */
const KEYS = [
  ...[
    "kind",
    "kernel",
    "load",
    "workload",
    "shape",
    "model",
    "precision",
    "batch",
    "tokens",
    "context",
    "promptTokens",
  ],
  ...["scale", "rate", "requests", "maxNumSeqs", "maxNumBatchedTokens", "cold"],
];

/** A figure: where it stands in a line, and whether more is better. */
interface Figure {
  readonly path: string;
  readonly better: "more" | "less";
  /** Where it is said how often it was measured. Once unless given. */
  readonly samples?: string;
  /** Whether every run gives the same. */
  readonly exact?: boolean;
  /** Where its distribution stands, if it is a median. */
  readonly spread?: string;
  /** A change that is noise, however small the figure is. */
  readonly slack?: number;
}

const FIGURES: readonly Figure[] = [
  { path: "tokensPerSecond", better: "more", samples: "step.count", spread: "step" },
  { path: "aheadTokensPerSecond", better: "more", samples: "step.count", spread: "step" },
  { path: "encodeMs", better: "less", samples: "steps" },
  { path: "dispatches", better: "less", exact: true },
  { path: "outputTokensPerSecond", better: "more" },
  { path: "requestsPerSecond", better: "more" },
  { path: "ttft.p50", better: "less", samples: "ttft.count" },
  { path: "ttft.p99", better: "less", samples: "ttft.count" },
  { path: "tpot.p50", better: "less", samples: "tpot.count" },
  { path: "tpot.p99", better: "less", samples: "tpot.count" },
  { path: "itl.p99", better: "less", samples: "itl.count" },
  { path: "outputRatio", better: "less" },
  { path: "tokenRatio", better: "less" },
  { path: "firstTokenMs", better: "less" },
  { path: "schedulingMs", better: "less", samples: "steps", slack: 0.02 },
  { path: "meanMs", better: "less", samples: "steps" },
  { path: "microseconds", better: "less", samples: "runs" },
  { path: "readback.p50", better: "less", samples: "readback.count", spread: "readback" },
  { path: "median", better: "less", samples: "runs" },
];

/** Medians of short runs differ by as much with nothing changed. */
const LEAST_NOISE = 0.03;

/** What was measured less often is not judged; of percentiles, so many measurements have to lie beyond. */
const LEAST_SAMPLES = 8;

/** One figure of two lines. */
export interface Comparison {
  /** What was measured. */
  readonly what: string;
  readonly figure: string;
  readonly before: number;
  readonly after: number;
  /** Share by which it changed. */
  readonly change: number;
  /** How often it was measured, on the side where that was less often; Infinity for what every run gives the same. */
  readonly samples: number;
  /** `noise` where it changed and the spreads overlap, `unjudged` where it changed and there are too few measurements. */
  readonly verdict: "better" | "worse" | "same" | "noise" | "unjudged";
}

/**
 * Compares what both have.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { compareResults } from "./compare.ts";
 *
 * const [moved] = compareResults([{ kernel: "sum", microseconds: 100, runs: 50 }], [{ kernel: "sum", microseconds: 150, runs: 50 }]);
 * assertEquals([moved?.what, moved?.change, moved?.verdict], ["kernel sum", 0.5, "worse"]);
 * ```
 */
export function compareResults(before: readonly Line[], after: readonly Line[]): Comparison[] {
  const earlier = new Map(before.map((line) => [keyOf(line), line]));
  const later = new Map(after.map((line) => [keyOf(line), line]));
  return [...later].flatMap(([what, line]) => {
    const other = earlier.get(what);
    return other === undefined ? [] : FIGURES.flatMap((figure) => compareFigure(what, figure, other, line));
  });
}

function compareFigure(what: string, figure: Figure, before: Line, after: Line): Comparison[] {
  const [a, b] = [numberAt(before, figure.path), numberAt(after, figure.path)];
  if (a === undefined || b === undefined || (a === 0 && b === 0)) return [];
  const change = b / a - 1;
  const spread = spreadOf(before, figure) + spreadOf(after, figure);
  const samples = Math.min(samplesOf(before, figure), samplesOf(after, figure));
  const beyond = figure.path.endsWith(".p99") ? samples / 100 : samples;
  const moved = Math.abs(change) > LEAST_NOISE && Math.abs(b - a) > (figure.slack ?? 0);
  const verdict = !moved
    ? "same"
    : beyond < LEAST_SAMPLES
    ? "unjudged"
    : Math.abs(change) <= spread
    ? "noise"
    : (change > 0) === (figure.better === "more")
    ? "better"
    : "worse";
  return [{ what, figure: figure.path, before: a, after: b, change, samples, verdict }];
}

function samplesOf(line: Line, { exact, samples }: Figure): number {
  if (exact) return Infinity;
  return (samples === undefined ? undefined : numberAt(line, samples)) ?? 1;
}

/** Half of what the middle half of all measurements spans, as a share of their median. */
function spreadOf(line: Line, { spread }: Figure): number {
  const summary = spread === undefined ? undefined : line[spread] as Partial<Summary> | undefined;
  const { p25, p50, p75 } = summary ?? {};
  return p25 !== undefined && p50 !== undefined && p75 !== undefined && p50 > 0 ? (p75 - p25) / (2 * p50) : 0;
}

function keyOf(line: Line): string {
  return KEYS.filter((key) => line[key] !== undefined && line[key] !== null).map((key) => `${key} ${line[key]}`).join(
    ", ",
  );
}

function numberAt(line: Line, path: string): number | undefined {
  const value = path.split(".").reduce<unknown>((at, key) => (at as Line | undefined)?.[key], line);
  return typeof value === "number" ? value : undefined;
}

/** What two files of results are: devices and dates of each, and a warning where the devices differ. */
export function comparisonHead(before: readonly Line[], after: readonly Line[]): string {
  const of = (lines: readonly Line[], name: string): string =>
    [...new Set(lines.map((line) => `${line[name] ?? "unknown"}`))].join(", ");
  const span = (lines: readonly Line[]): string => {
    const dates = lines.map(({ date }) => `${date ?? "undated"}`).sort(),
      [first = "", last = ""] = [dates[0], dates.at(-1)];
    return first === last ? first : `${first} to ${last}`;
  };
  const devices = [of(before, "device"), of(after, "device")];
  return [
    `before  ${devices[0]}  ${span(before)}`,
    `after   ${devices[1]}  ${span(after)}`,
    ...(devices[0] === devices[1] ? [] : ["The devices differ: what moved is not the code alone."]),
  ].join("\n");
}

/** The comparison for people. */
export function comparisonTable(comparisons: readonly Comparison[]): string {
  const sections = Map.groupBy(comparisons, ({ what }) => what);
  return [...sections].map(([what, figures]) => {
    const rows = figures.map((comparison) => {
      const { figure, before, after, change } = comparison;
      const percent = `${change >= 0 ? "+" : ""}${(100 * change).toFixed(1)}%`;
      return [`  ${figure}`, formatNumber(before), formatNumber(after), percent, verdictText(comparison)];
    });
    return `${what}\n${formatTable(["", "before", "after", "change", ""], rows)}`;
  }).join("\n\n");
}

function verdictText({ verdict, samples }: Comparison): string {
  if (verdict === "same") return "";
  if (verdict === "noise") return "spreads overlap";
  if (verdict !== "unjudged") return verdict;
  return samples === 1 ? "one run: not judged" : `${samples} measurements: not judged`;
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), [a, b] = flags.words;
  flags.check(2);
  if (a === undefined || b === undefined) {
    throw new UsageError("Give two files of results: bench:compare A B");
  }
  const before = await readResults(a), after = await readResults(b), comparisons = compareResults(before, after);
  if (comparisons.length === 0) {
    throw new Error(`Cannot compare: no line of "${b}" measured what one of "${a}" did`);
  }
  console.log(`${comparisonHead(before, after)}\n\n${comparisonTable(comparisons)}`);
}

if (import.meta.main) await runBench(USAGE, main);
