/**
 * Holds fast precision against exact on a text: top-1 agreement, KL divergence and perplexity, position by position.
 *
 * @module
 */
import { BenchArguments, readInput, runBench, UsageError } from "./arguments.ts";
import { loadModel, type Model } from "../mod.ts";

const USAGE = `deno task eval:precision MODEL TEXT [--tokens=2000]
MODEL - is the story model, TEXT a file, or a JSON file with ids.`;

/** Tokens that are compared in one context. */
const WINDOW = 256;

/** What fast precision may cost. */
const targets = { top1: 0.98, top1AtMargin: 0.999, margin: 0.2, meanKl: 2e-3, perplexity: 0.005 };

/** Sums over the positions of a text. */
export interface Comparison {
  positions: number;
  /** Those that another one follows in its window. */
  predicted: number;
  /** Those where both take the same token, and among all those where exact precision is clear about it. */
  agree: number;
  clear: number;
  clearAgree: number;
  kl: number;
  exactNll: number;
  fastNll: number;
}

/** ln of the softmax of a row. */
function logSoftmax(row: Float32Array): Float64Array {
  const greatest = row.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (const logit of row) sum += Math.exp(logit - greatest);
  return Float64Array.from(row, (logit) => logit - greatest - Math.log(sum));
}

/** Position of the greatest and its lead over the next. */
function best(row: ArrayLike<number>): { at: number; margin: number } {
  let at = 0, second = -Infinity;
  for (let i = 1; i < row.length; i++) {
    if (row[i]! > row[at]!) {
      second = row[at]!;
      at = i;
    } else if (row[i]! > second) second = row[i]!;
  }
  return { at, margin: row[at]! - second };
}

function compareRow(into: Comparison, exactRow: Float32Array, fastRow: Float32Array, next: number | undefined): void {
  const exact = logSoftmax(exactRow),
    fast = logSoftmax(fastRow),
    first = best(exact),
    agrees = best(fast).at === first.at;
  into.positions++;
  into.agree += Number(agrees);
  into.clear += Number(first.margin > targets.margin);
  into.clearAgree += Number(agrees && first.margin > targets.margin);
  for (let i = 0; i < exact.length; i++) into.kl += Math.exp(exact[i]!) * (exact[i]! - fast[i]!);
  if (next === undefined) return;
  into.predicted++;
  into.exactNll -= exact[next]!;
  into.fastNll -= fast[next]!;
}

/** Compares windows of at most the context's length. */
async function compare(exact: Model, fast: Model, ids: readonly number[], window: number): Promise<Comparison> {
  const total: Comparison = {
    positions: 0,
    predicted: 0,
    agree: 0,
    clear: 0,
    clearAgree: 0,
    kl: 0,
    exactNll: 0,
    fastNll: 0,
  };
  for (let start = 0; start < ids.length; start += window) {
    const piece = ids.slice(start, start + window);
    const [a, b] = [await exact.logits(piece), await fast.logits(piece)], width = a.shape[1];
    piece.forEach((_, i) =>
      compareRow(
        total,
        a.data.subarray(i * width, (i + 1) * width),
        b.data.subarray(i * width, (i + 1) * width),
        piece[i + 1],
      )
    );
  }
  return total;
}

/** The ids of a file: of its text, or those that it lists. */
async function idsOf(model: Model, file: string): Promise<readonly number[]> {
  const text = await readInput(file);
  if (!file.endsWith(".json")) {
    if (model.tokenizer) return model.tokenizer.encode(text);
    throw new UsageError(`"${model.name}" has no tokenizer: give a JSON file with ids in place of "${file}"`);
  }
  const remedy = `Cannot read "${file}": give JSON such as {"ids":[1,2,3]}`;
  let ids: unknown;
  try {
    ids = (JSON.parse(text) as { ids?: unknown } | null)?.ids;
  } catch (cause) {
    throw new Error(remedy, { cause });
  }
  if (!Array.isArray(ids)) throw new Error(remedy);
  return ids;
}

/**
 * Prints what fast precision costs, a figure a line.
 *
 * @throws {Error} if a figure misses its target.
 */
export function report(total: Comparison, print: (line: string) => void = console.log): void {
  const drift = Math.exp((total.fastNll - total.exactNll) / total.predicted) - 1;
  let figures = 0, missed = 0;
  const figure = (what: string, value: number, holds: boolean): void => {
    print(`${holds ? "ok  " : "FAIL"} ${what}: ${value.toPrecision(5)}`);
    figures++;
    missed += Number(!holds);
  };
  const top1 = total.agree / total.positions, kl = total.kl / total.positions;
  const clear = total.clear === 0 ? 1 : total.clearAgree / total.clear;
  figure(`top-1 agreement (at least ${targets.top1})`, top1, top1 >= targets.top1);
  figure(
    `top-1 agreement at margins above ${targets.margin} (at least ${targets.top1AtMargin})`,
    clear,
    clear >= targets.top1AtMargin,
  );
  figure(`mean KL (at most ${targets.meanKl})`, kl, kl <= targets.meanKl);
  figure(`perplexity drift (at most ${targets.perplexity})`, drift, Math.abs(drift) <= targets.perplexity);
  if (missed > 0) throw new Error(`Fast precision misses ${missed} of ${figures} targets`);
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), [source, file] = flags.words, most = flags.number("tokens", 2000);
  flags.check(2);
  if (!source || !file) throw new UsageError("Give a model and a text: eval:precision MODEL TEXT");
  const name = source === "-" ? undefined : source, options = { kvDtype: "f16", contextLength: WINDOW } as const;
  await using exact = await loadModel(name, { ...options, precision: "exact" });
  const ids = (await idsOf(exact, file)).slice(0, most);
  if (ids.length < 2) throw new UsageError(`"${file}" has ${ids.length} tokens to compare: at least 2 are needed`);
  await using fast = await loadModel(name, { ...options, precision: "fast" });
  const total = await compare(exact, fast, ids, WINDOW);
  console.log(`${total.positions} positions of ${exact.name}`);
  report(total);
}

if (import.meta.main) await runBench(USAGE, main);
