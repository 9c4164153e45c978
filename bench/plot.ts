/**
 * Draws results as SVG.
 *
 * From decode and prefill results: tokens a second against context length (`STEM-context.svg`), and where each microsecond of a
 * step goes (`STEM-step.svg` and `STEM-prefill.svg`, of results with a profile). From serving results what `bench:serve` draws too.
 *
 * @module
 */
import { anchorsOf } from "./anchors.ts";
import { BenchArguments, runBench, UsageError } from "./arguments.ts";
import { readResults } from "./result.ts";
import { plotServing } from "./serve_plot.ts";
import type { ServeResult } from "./serve_timing.ts";
import type { StepResult } from "./step.ts";
import { barChart, lineChart, type Series } from "./svg.ts";

const USAGE = "deno task bench:plot [--out=STEM] bench/results/A.jsonl …";

/** Tokens a second of one sequence against its context, a line a shape and precision, with what llama.cpp does. */
export function contextPlot(results: readonly StepResult[]): string {
  const single = results.filter(({ batch, tokens }) => batch === 1 && tokens === 1);
  const groups = Map.groupBy(single, ({ shape, precision }) => `${shape} ${precision}`);
  const contexts = [...new Set(single.map(({ context }) => context))].sort((a, b) => a - b);
  const lines = [...groups].map(([name, group]): Series => {
    const points = new Map(group.map(({ context, tokensPerSecond }) => [context, tokensPerSecond]));
    return { name, marked: true, points: [...points].sort(([a], [b]) => a - b) };
  });
  const ends = [contexts[0] ?? 1, contexts.at(-1) ?? 1] as const;
  const shapes = [...new Map(single.map((result) => [result.shape, { ...result, context: 512 }])).values()];
  const others = shapes.flatMap((one) =>
    anchorsOf(one).map(({ engine, tokensPerSecond }): Series => ({
      name: `${engine}, ${one.shape}`,
      dashed: true,
      points: ends.map((context) => [context, tokensPerSecond] as const),
    }))
  );
  return lineChart({
    title: "Decoding one sequence, tokens a second",
    subtitle: subtitleOf(single) + (others.length > 0 ? "; dashed: others at a context of 512" : ""),
    x: { label: "context, tokens", log: true, ticks: contexts },
    y: { label: "tok/s", log: true },
    series: [...lines, ...others],
  });
}

/** Where the microseconds of a step go, a bar a result: GPU time by what it is for. */
export function stepPlot(profiled: readonly StepResult[]): string {
  return barChart({
    title: "Where each microsecond of a step goes",
    subtitle: `${subtitleOf(profiled)}; by timestamps, each dispatch in a pass of its own`,
    unit: "microseconds",
    bars: profiled.map(({ shape, precision, batch, tokens, context, roles }) => ({
      label: `${shape} ${precision}, ${
        tokens > 1 ? `prefill ${tokens}` : batch > 1 ? `${batch} at ${context}` : `${context}`
      }`,
      parts: roles!.map(({ role, microseconds }) => ({ name: role, value: microseconds })),
    })),
  });
}

function subtitleOf(results: readonly StepResult[]): string {
  const [first] = results;
  return first === undefined ? "" : `${first.device}, ${(first.date ?? "").slice(0, 10)}`;
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), stem = flags.text("out") ?? flags.words[0]?.replace(/\.jsonl$/, "");
  flags.check();
  if (stem === undefined || flags.words.length === 0) {
    throw new UsageError("Give files of results: bench:plot bench/results/FILE.jsonl");
  }
  const lines = (await Promise.all(flags.words.map(readResults))).flat();
  const steps = lines.filter((line) => "stepMs" in line && !("kind" in line)) as unknown as StepResult[];
  let drawn = 0;
  const tell = (path: string): void => {
    drawn++;
    console.log(path);
  };
  const write = async (name: string, svg: string): Promise<void> => {
    await Deno.writeTextFile(`${stem}-${name}.svg`, svg);
    tell(`${stem}-${name}.svg`);
  };
  if (new Set(steps.filter(({ tokens }) => tokens === 1).map(({ context }) => context)).size > 1) {
    await write("context", contextPlot(steps));
  }
  const profiled = steps.filter(({ roles }) => roles !== undefined);
  const decoding = profiled.filter(({ tokens }) => tokens === 1), reading = profiled.filter(({ tokens }) => tokens > 1);
  if (decoding.length > 0) await write("step", stepPlot(decoding));
  if (reading.length > 0) await write("prefill", stepPlot(reading));
  const serving = lines.filter(({ bench }) => bench === "serve") as unknown as ServeResult[];
  for (const path of await plotServing(stem, serving)) tell(path);
  if (drawn > 0) return;
  throw new Error(
    `Nothing to draw in ${
      flags.words.join(", ")
    }: plots are of several contexts, of results with --profile, and of serving`,
  );
}

if (import.meta.main) await runBench(USAGE, main);
