/**
 * The command line of the step benches, and their report: a line of JSON for each shape on standard output and in `--out`, tables
 * on standard error.
 *
 * @module
 */
import type { Precision } from "../model/decoder.ts";
import { openDevice } from "../tensor/mod.ts";
import { anchorsOf } from "./anchors.ts";
import { BenchArguments } from "./arguments.ts";
import { measureCeilings } from "./ceilings.ts";
import { Results } from "./result.ts";
import type { RoleTime } from "./roles.ts";
import { chooseStepLimits } from "../serving/memory.ts";
import { checkPositions, shapeConfig, type ShapeName, shapeNames } from "./shapes.ts";
import { type StepOptions, type StepResult, timeStep } from "./step.ts";
import { positionsOf } from "./step_engine.ts";
import { formatNumber as show, formatTable } from "./table.ts";

/** What a bench times of each shape, at each batch size. */
export interface StepPlan {
  /** Tokens of a sequence in the step, and its positions after. */
  readonly sizes: readonly Pick<StepOptions, "tokens" | "context">[];
  readonly steps: number;
  /** Most tokens of a step of the engine; what it chooses for the shape where undefined. */
  readonly chunk: number | undefined;
}

/**
 * Times each shape named, the story model unless any is; at each size and batch size asked for.
 *
 * @param planOf Reads the flags that this bench alone has.
 */
export async function runStepBench(
  bench: string,
  args: readonly string[],
  planOf: (flags: BenchArguments) => StepPlan,
): Promise<void> {
  const flags = new BenchArguments(args);
  const precision = flags.choice<Precision>("precision", ["exact", "fast"]), profile = flags.on("profile");
  const { sizes, steps, ...plan } = planOf(flags), batches = flags.numbers("batch", [1]), out = flags.text("out");
  flags.check(shapeNames);
  const shapes = flags.words.length > 0 ? flags.words as ShapeName[] : ["stories" as const];
  const device = await openDevice();
  const planned = shapes.flatMap((shape) => {
    const { maxNumBatchedTokens } = chooseStepLimits({}, device.caps.cpu, shapeConfig(shape));
    const chunk = plan.chunk ?? maxNumBatchedTokens;
    return batches.flatMap((batch) =>
      sizes.map((size): StepOptions => ({ shape, precision, batch, ...size, chunk, steps, profile }))
    );
  });
  for (const options of planned) checkPositions(options.shape, positionsOf(options));
  const results = new Results<StepResult>(bench, device.info.description, args, out);
  const ceilings = await measureCeilings(device);
  for (const options of planned) {
    const { roles } = results.add(await timeStep(device, options, ceilings));
    if (roles) console.error(`\n${options.shape} ${precision}\n${roleTable(roles, ceilings.bytesPerSecond)}\n`);
  }
  device.close();
  console.error(stepTable(results.all));
}

/** A row a measurement. */
function stepTable(results: readonly StepResult[]): string {
  const head = ["shape", "batch", "tokens", "context", "tok/s engine", "tok/s ahead", "step ms", "min", "max"];
  const rows = results.map((result) => {
    const { shape, precision, batch, tokens, context, tokensPerSecond, aheadTokensPerSecond, step, stepMs } = result;
    const { aheadMs, encodeMs, schedulingMs, dispatches, bytesPerSecond, roofline } = result;
    return [
      ...[`${shape} ${precision}`, batch, tokens, context, show(tokensPerSecond), show(aheadTokensPerSecond)],
      ...[stepMs, step.min, step.max, aheadMs, encodeMs, schedulingMs].map(show),
      ...[dispatches, show(bytesPerSecond / 1e9), `${(100 * roofline).toFixed(0)}%`],
      anchorsOf(result).map(({ engine, tokensPerSecond }) => `${engine} ${show(tokensPerSecond)}`).join(", "),
    ];
  });
  const more = ["ahead ms", "encode ms", "scheduling ms", "dispatches", "GB/s", "roofline"];
  return formatTable([...head, ...more, "others' tok/s"], rows);
}

/** Where the GPU's time goes, most first. */
function roleTable(roles: readonly RoleTime[], bytesPerSecond: number): string {
  const total = roles.reduce((sum, { microseconds }) => sum + microseconds, 0);
  const rows = roles.toSorted((a, b) => b.microseconds - a.microseconds).map((one) => {
    const { role, dispatches, microseconds, bytes } = one, rate = bytes / microseconds * 1e6;
    const share = `${(100 * microseconds / total).toFixed(1)}%`,
      memory = `${(100 * rate / bytesPerSecond).toFixed(0)}%`;
    return [role, dispatches, show(microseconds), show(microseconds / dispatches), share, show(rate / 1e9), memory];
  });
  return formatTable(["role", "dispatches", "us", "us each", "share", "GB/s", "of memory's rate"], rows);
}
