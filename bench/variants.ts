/**
 * Times every form of the matrix products and prints anew the tables that choose among them:
 * the rows of `kernels/variants.ts`, and where `kernels/int8_variants.ts` picks a form that is not the fastest. Bounds of
 * rows (tokens, size of the weight) stay as they are; what a row's form should be is timed.
 *
 * @module
 */
import { int8Kernel } from "../kernels/int8_matmul.ts";
import { int8Call } from "../kernels/int8_matmul_cases.ts";
import { type Int8Form, int8Form, tileForms } from "../kernels/int8_variants.ts";
import { productKernel } from "../kernels/product.ts";
import { seededRandom } from "../kernels/random.ts";
import { productCall, repeatedWeight } from "../kernels/random_product.ts";
import type { CaseCall, Kernel } from "../kernels/spec.ts";
import { type ProductVariant, productVariant, productVariants } from "../kernels/variants.ts";
import { formatName, type WeightFormat } from "../kernels/weight_format.ts";
import { buffer, type Caps, compile, type Device, kernelNode, type Node, openDevice, Storage } from "../tensor/mod.ts";
import { BenchArguments, runBench } from "./arguments.ts";
import { benchFormat } from "./random_model.ts";
import { shapeConfig, type ShapeName } from "./shapes.ts";
import { timeProgram } from "./timing.ts";

const USAGE = "deno task bench:variants";

type Form = ProductVariant | Int8Form;

/** One product at one number of tokens. */
interface Point {
  readonly shape: string;
  readonly format: WeightFormat;
  readonly int8: boolean;
  readonly tokens: number;
  readonly rows: number;
  readonly columns: number;
}

/** Microseconds of the forms of a point, by their text. */
type Times = ReadonlyMap<string, number>;

/** A form as TypeScript, which also tells forms apart: keys in order. */
function formText(form: object): string {
  const entries = Object.entries(form).sort(([a], [b]) => a < b ? -1 : 1);
  return entries.map(([key, value]) => `${key}: ${typeof value === "string" ? `"${value}"` : value}`).join(", ");
}

function pointsOf(caps: Caps): Point[] {
  const names: readonly ShapeName[] = caps.cpu ? ["stories"] : ["0.5b", "7b"];
  const products: [WeightFormat, boolean][] = [[benchFormat, false], [{ kind: "dense", dtype: "bf16" }, false]];
  if (!caps.cpu) products.push([benchFormat, true]);
  const points: Point[] = [];
  for (const name of names) {
    const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = shapeConfig(name);
    const add = (part: string, rows: number, columns: number): void => {
      for (const [format, int8] of products) {
        for (const tokens of caps.cpu ? [1, 4, 64] : [1, 4, 64, 256, 512]) {
          points.push({ shape: `${name}, ${part}`, format, int8, tokens, rows, columns });
        }
      }
    };
    add("QKV", (numHeads + 2 * numKvHeads) * headDim, hiddenSize);
    add("gate and up", 2 * intermediateSize, hiddenSize);
    add("down", hiddenSize, intermediateSize);
  }
  return points;
}

/** Forms of an exact product. Those for many tokens take long to compile on CPU devices: few of them. */
function productForms(caps: Caps, tokens: number): ProductVariant[] {
  const served = tokens === 1 ? [1] : tokens < 8 ? [4] : [4, 8], kind = caps.cpu ? "laneRows" : "subgroupRows";
  const rows = caps.cpu ? (tokens === 1 ? [2, 4, 8] : [4, 8]) : [2, 4];
  const workgroups = caps.cpu ? (tokens === 1 ? [8, 32] : [8]) : [64, 128, 256];
  return rows.flatMap((rows) =>
    served.flatMap((tokens) => workgroups.map((workgroup) => ({ kind, rows, tokens, workgroup } as const)))
  );
}

/** Teams of int8 rows: 64 to 256 invocations. */
const teams = [8, 32].flatMap((lanes) =>
  [2, 4, 8].flatMap((groups) => [1, 2, 4, 8].map((slices) => ({ lanes, groups, slices })))
).filter(({ lanes, groups, slices }) => lanes * groups * slices >= 64 && lanes * groups * slices <= 256);

/** Forms of an int8 product that the device has room for. */
function int8Forms(caps: Caps, { tokens, columns }: Point): Int8Form[] {
  if (tokens <= 8) {
    const form = { kind: "rows", rows: 2, tokens: tokens === 1 ? 1 : 4 } as const, unroll = tokens === 1 ? 2 : 1;
    return teams.filter(({ lanes }) => !caps.subgroups || lanes <= caps.subgroupSize)
      .map((team) => ({ ...form, ...team, unroll }));
  }
  return tileForms(columns, caps);
}

/** The form that the tables choose today, without the bounds of its row. */
function formToday(caps: Caps, { int8, tokens, rows, columns }: Point): Form {
  if (int8) return int8Form(caps, { maxTokens: tokens, rows, columns });
  const { cpu: _cpu, maxTokens: _most, minWeights: _least, ...form } = productVariant(caps, tokens, rows * columns);
  return form;
}

/** The kernel in one form, whatever the tables say. */
function kernelOf(form: Form, { format }: Point): Kernel<unknown> {
  if (form.kind === "rows" || form.kind === "tile") return int8Kernel(() => form) as Kernel<unknown>;
  const name = format.kind === "dense" ? "matmul" : "quantised_matmul";
  return productKernel(name, format.kind, () => form) as Kernel<unknown>;
}

function callOf({ int8, format, tokens, rows, columns }: Point): CaseCall<unknown> {
  const random = seededRandom(1);
  if (!int8 || format.kind === "dense") {
    return productCall({ format }, tokens, rows, columns, random, "f32", repeatedWeight);
  }
  return int8Call({ format }, [tokens, rows, columns], random, repeatedWeight);
}

/** More than a GPU's cache: few tokens are timed over copies of the weight of so many bytes, so that it comes from memory. */
const coldBytes = 128e6;

function place(inputs: CaseCall<unknown>["inputs"]): Storage[] {
  return inputs.map(({ dtype, shape, data }) => new Storage(dtype, shape, data.slice() as typeof data));
}

/** Times the forms of a point and prints each. The better of two rounds counts, since other work disturbs the clock. */
async function timePoint(device: Device, point: Point): Promise<Times> {
  const { caps } = device, today = formToday(caps, point), call = callOf(point), activations = point.int8 ? 2 : 1;
  const forms: Form[] = point.int8 ? int8Forms(caps, point) : productForms(caps, point.tokens);
  if (!forms.some((form) => formText(form) === formText(today))) forms.push(today);
  const bytes = call.inputs.slice(activations).reduce((sum, { data }) => sum + data.byteLength, 0);
  const macs = point.tokens * point.rows * point.columns;
  const copies = caps.cpu || point.tokens >= 64 ? 1 : Math.ceil(coldBytes / bytes);
  const x = place(call.inputs.slice(0, activations));
  const weights = Array.from({ length: copies }, () => place(call.inputs.slice(activations)));
  const times = new Map<string, number>();
  for (const form of forms) {
    const kernel = kernelOf(form, point);
    const node = (weight: readonly Storage[]): Node =>
      kernelNode(kernel, [...x, ...weight].map((storage) => buffer(storage)), call.params);
    using program = compile(device, () => weights.map(node));
    const rounds = [await timeProgram(device, program), await timeProgram(device, program)];
    const microseconds = Math.min(...rounds.map((round) => round.microseconds)) / copies;
    times.set(formText(form), microseconds);
    const speeds = [microseconds, ...[bytes, macs].map((count) => count / microseconds / 1e3)];
    const mark = formText(form) === formText(today) ? "  <- today" : "";
    console.log(tableLine(pointName(point), speeds.map((speed) => speed.toFixed(1)), `${formText(form)}${mark}`));
  }
  [...x, ...weights.flat()].forEach((storage) => storage.release());
  return times;
}

const pointName = ({ shape, format, int8, tokens }: Point): string =>
  `${shape}, ${formatName(format)}${int8 ? " by int8" : ""}, T ${tokens}`;

const tableLine = (name: string, cells: readonly string[], form: string): string =>
  `${name.padEnd(60)}${cells.map((cell) => cell.padStart(10)).join("")}  ${form}`;

/** The form with the least time relative to the best, as a geometric mean over points, and how many times
 * today's speed it has. */
function bestForm(points: readonly Times[], today: string): { form: string; gain: number } {
  const mean = (form: string): number => {
    const logs = points.map((times) => Math.log((times.get(form) ?? Infinity) / Math.min(...times.values())));
    return Math.exp(logs.reduce((sum, log) => sum + log, 0) / logs.length);
  };
  const form = [...points[0]!.keys()].reduce((best, other) => mean(other) < mean(best) ? other : best, today);
  return { form, gain: mean(today) / mean(form) };
}

/** Prints the rows of `kernels/variants.ts`, then the sizes for which `kernels/int8_variants.ts` is off. */
function printTables(caps: Caps, timed: readonly (readonly [Point, Times])[]): void {
  const margin = caps.cpu ? 1.1 : 1.05; // times closer than this are the same
  console.log("\nkernels/variants.ts:");
  for (const row of productVariants.filter(({ cpu }) => cpu === caps.cpu)) {
    const { cpu, maxTokens, minWeights, ...form } = row, today = formText(form);
    const points = timed.filter(([{ int8, tokens, rows, columns }]) =>
      !int8 && productVariant(caps, tokens, rows * columns) === row
    );
    const best = points.length === 0 ? undefined : bestForm(points.map(([, times]) => times), today);
    const taken = best && best.gain > margin ? best.form : today;
    const remark = taken !== today ? `DIFFERS: ${best!.gain.toFixed(2)} times today's speed` : "as today";
    console.log(`  { ${formText({ cpu, maxTokens, minWeights })}, ${taken} }, // ${best ? remark : "not timed"}`);
  }
  if (caps.cpu) return;
  console.log("\nkernels/int8_variants.ts:");
  for (const [point, times] of timed.filter(([{ int8 }]) => int8)) {
    const today = formText(formToday(caps, point)), { form, gain } = bestForm([times], today);
    const remark = gain > margin ? `DIFFERS: ${gain.toFixed(2)} times the speed with ${form}` : "as today";
    console.log(`  ${pointName(point)}: ${today} // ${remark}`);
  }
}

async function main(args: readonly string[]): Promise<void> {
  new BenchArguments(args).check([]);
  const device = await openDevice();
  try {
    const timed: [Point, Times][] = [];
    console.log(tableLine("", ["us", "GB/s", "GMAC/s"], "form"));
    for (const point of pointsOf(device.caps)) timed.push([point, await timePoint(device, point)]);
    printTables(device.caps, timed);
  } finally {
    device.close();
  }
}

if (import.meta.main) await runBench(USAGE, main);
