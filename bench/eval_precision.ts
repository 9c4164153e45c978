/**
 * Holds fast precision against exact on a text: top-1 agreement, KL divergence and perplexity, position by position.
 *
 * @module
 */
import { BenchArguments, readInput, runBench, UsageError } from "./arguments.ts";
import { loadModel, type Model } from "../mod.ts";

const USAGE = `deno task eval:precision MODEL TEXT [--tokens=2000]
MODEL - is the story model, TEXT a file, or a JSON file with ids.`;

/** What fast precision may cost. */
const targets = { top1: 0.98, top1AtMargin: 0.999, margin: 0.2, meanKl: 2e-3, perplexity: 0.005 };

interface Comparison {
  positions: number;
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
  into.exactNll -= exact[next]!;
  into.fastNll -= fast[next]!;
}

/** Compares windows of at most the context's length. */
async function compare(exact: Model, fast: Model, ids: readonly number[], window: number): Promise<Comparison> {
  const total: Comparison = { positions: 0, agree: 0, clear: 0, clearAgree: 0, kl: 0, exactNll: 0, fastNll: 0 };
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

async function idsOf(model: Model, file: string): Promise<number[]> {
  const text = await readInput(file);
  if (file.endsWith(".json")) return (JSON.parse(text) as { ids: number[] }).ids;
  return model.tokenizer!.encode(text);
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), [source, file] = flags.words, most = flags.number("tokens", 2000);
  flags.check(2);
  if (!source || !file) throw new UsageError("Give a model and a text: eval:precision MODEL TEXT");
  const name = source === "-" ? undefined : source, options = { kvDtype: "f16", contextLength: 1024 } as const;
  await using exact = await loadModel(name, { ...options, precision: "exact" });
  await using fast = await loadModel(name, { ...options, precision: "fast" });
  const ids = (await idsOf(exact, file)).slice(0, most);
  const total = await compare(exact, fast, ids, 256), predicted = total.positions - Math.ceil(ids.length / 256);
  const top1 = total.agree / total.positions, clear = total.clearAgree / total.clear, kl = total.kl / total.positions;
  const drift = Math.exp((total.fastNll - total.exactNll) / predicted) - 1;
  const line = (what: string, value: number, holds: boolean): void =>
    console.log(`${holds ? "ok  " : "FAIL"} ${what}: ${value.toPrecision(5)}`);
  console.log(`${total.positions} positions of ${exact.name}`);
  line(`top-1 agreement (at least ${targets.top1})`, top1, top1 >= targets.top1);
  line(
    `top-1 agreement at margins above ${targets.margin} (at least ${targets.top1AtMargin})`,
    clear,
    clear >= targets.top1AtMargin,
  );
  line(`mean KL (at most ${targets.meanKl})`, kl, kl <= targets.meanKl);
  line(`perplexity drift (at most ${targets.perplexity})`, drift, Math.abs(drift) <= targets.perplexity);
}

if (import.meta.main) await runBench(USAGE, main);
