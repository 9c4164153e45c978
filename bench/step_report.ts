/**
 * The command line of the step benches, and their report: a line of JSON for each shape on standard output, a table on standard
 * error.
 *
 * @module
 */
import type { Precision } from "../model/decoder.ts";
import { openDevice } from "../tensor/mod.ts";
import { type ShapeName, shapeNames } from "./shapes.ts";
import { type StepTiming, timeStep } from "./step.ts";

/** What a bench times unless told otherwise. */
export interface StepDefaults {
  readonly tokens: number;
  readonly context: number;
  readonly steps: number;
}

/** Times each shape named, the story model unless any is. */
export async function runStepBench(args: readonly string[], defaults: StepDefaults): Promise<void> {
  const text = (name: string, fallback: string): string =>
    args.find((arg) => arg.startsWith(`--${name}=`))?.split("=")[1] ?? fallback;
  const number = (name: string, fallback: number): number => Number(text(name, `${fallback}`));
  const shapes = args.filter((arg): arg is ShapeName => shapeNames.includes(arg as ShapeName));
  const tokens = number("tokens", defaults.tokens), context = Math.max(tokens, number("context", defaults.context));
  const device = await openDevice(), timings: StepTiming[] = [];
  for (const shape of shapes.length > 0 ? shapes : ["stories" as const]) {
    const precision = text("precision", "exact") as Precision, profile = args.includes("--profile");
    const timing = await timeStep(device, {
      shape,
      precision,
      batch: number("batch", 1),
      tokens,
      context,
      steps: number("steps", defaults.steps),
      profile,
    });
    timings.push(timing);
    console.log(JSON.stringify(timing));
  }
  device.close();
  console.error(table(timings));
}

function table(timings: readonly StepTiming[]): string {
  const head = [
    "shape",
    "precision",
    "batch",
    "context",
    "tok/s engine",
    "tok/s ahead",
    "step ms",
    "encode ms",
    "dispatches",
    "GB/s",
  ];
  const rows = timings.map((t) =>
    [
      t.shape,
      t.precision,
      t.batch,
      t.context,
      t.tokensPerSecond.toFixed(0),
      t.aheadTokensPerSecond.toFixed(0),
      t.stepMs.toFixed(2),
      t.encodeMs.toFixed(2),
      t.dispatches,
      (t.weightBytes / t.aheadMs / 1e6).toFixed(0),
    ].map(String)
  );
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]!.length)));
  return [head, ...rows].map((row) => row.map((cell, i) => cell.padStart(widths[i]!)).join("  ")).join("\n");
}
