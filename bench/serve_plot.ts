/**
 * Plots of what `bench:serve` measured: latencies as cumulative distributions, throughput against batch size.
 *
 * @module
 */
import { batchedAnchors } from "./anchors.ts";
import { ofKind } from "./serve_report.ts";
import type { ServeResult, TrafficResult } from "./serve_timing.ts";
import { lineChart, type Series } from "./svg.ts";

const LATENCIES = {
  ttft: "Time to first token",
  tpot: "Time per output token",
  itl: "Time between outputs",
} as const;

/** The distributions of one latency, a line a workload. */
export function latencyPlot(traffic: readonly TrafficResult[], latency: keyof typeof LATENCIES): string {
  return lineChart({
    title: LATENCIES[latency],
    subtitle: subtitleOf(traffic),
    x: { label: "milliseconds", log: true },
    y: { label: "% of values", range: [0, 100] },
    series: traffic.map((result): Series => ({
      name: `${result.workload}, ${result.shape} ${result.precision}`,
      points: result.distributions[latency].map(([value, share]) => [value, 100 * share]),
    })),
  });
}

/** Tokens a second against sequences at once, a line a shape, with what others do. */
export function throughputPlot(results: readonly ServeResult[]): string {
  const decode = ofKind(results, "decode");
  const groups = Map.groupBy(decode, ({ shape, precision, context }) => `${shape} ${precision}, context ${context}`);
  const batches = [...new Set(decode.map(({ batch }) => batch))].sort((a, b) => a - b);
  const shapes = [...new Map(decode.map(({ shape, device }) => [shape, device]))];
  const others = shapes.flatMap(([shape, device]) =>
    batchedAnchors(device, shape).map(({ engine, points }): Series => ({
      name: `${engine}, ${shape}`,
      dashed: true,
      marked: true,
      points,
    }))
  );
  return lineChart({
    title: "Decoding, tokens a second",
    subtitle: subtitleOf(decode),
    x: { label: "sequences at once", log: true, ticks: batches },
    y: { label: "tok/s", log: true },
    series: [
      ...[...groups].map(([name, group]): Series => ({
        name,
        marked: true,
        points: group.map(({ batch, tokensPerSecond }) => [batch, tokensPerSecond] as const).sort(([a], [b]) => a - b),
      })),
      ...others,
    ],
  });
}

/** Writes the plots that there is something to draw for: `STEM-throughput.svg`, `STEM-ttft.svg` and so on. */
export async function plotServing(stem: string, results: readonly ServeResult[]): Promise<string[]> {
  const traffic = ofKind(results, "traffic"), written: string[] = [];
  const write = async (name: string, svg: string): Promise<void> => {
    written.push(`${stem}-${name}.svg`);
    await Deno.writeTextFile(`${stem}-${name}.svg`, svg);
  };
  if (ofKind(results, "decode").length > 0) await write("throughput", throughputPlot(results));
  if (traffic.length === 0) return written;
  for (const latency of Object.keys(LATENCIES) as (keyof typeof LATENCIES)[]) {
    await write(latency, latencyPlot(traffic, latency));
  }
  return written;
}

function subtitleOf(results: readonly ServeResult[]): string {
  const [first] = results;
  return first === undefined ? "" : `${first.device}, ${first.date.slice(0, 10)}`;
}
