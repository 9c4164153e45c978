/**
 * Tables of what `bench:serve` measured.
 *
 * @module
 */
import type { DecodeResult, InterferenceResult, ServeResult, TrafficResult } from "./serve_timing.ts";
import type { Summary } from "./statistics.ts";
import { formatNumber as show, formatTable } from "./table.ts";

/** The results of one kind. */
export function ofKind<K extends ServeResult["kind"]>(
  results: readonly ServeResult[],
  kind: K,
): Extract<ServeResult, { kind: K }>[] {
  return results.filter((result): result is Extract<ServeResult, { kind: K }> => result.kind === kind);
}

/** Decoding, a row a batch size; empty where there is none. */
export function decodeTable(results: readonly ServeResult[]): string {
  const rows = ofKind(results, "decode").map((result: DecodeResult) => {
    const { shape, precision, batch, context, tokensPerSecond, stepMs, schedulingMs } = result;
    return [`${shape} ${precision}`, batch, context, ...[tokensPerSecond, stepMs, schedulingMs].map(show)];
  });
  if (rows.length === 0) return "";
  return formatTable(["decode", "sequences", "context", "tok/s", "step ms", "scheduling ms"], rows);
}

/** What a long prompt does; empty where there is none. */
export function interferenceTable(results: readonly ServeResult[]): string {
  const rows = ofKind(results, "interference").map((result: InterferenceResult) => {
    const { shape, precision, batch, promptTokens, firstTokenMs } = result;
    const { quiet, busy, outputRatio, quietToken, busyToken, tokenRatio } = result;
    const outputs = [quiet.p50, busy.p50, busy.p99, outputRatio], tokens = [quietToken.p50, busyToken.p99, tokenRatio];
    return [`${shape} ${precision}`, batch, show(promptTokens), ...[...outputs, ...tokens, firstTokenMs].map(show)];
  });
  if (rows.length === 0) return "";
  const outputs = ["ms an output p50", "while read p50", "p99", "p99 by p50"];
  const tokens = ["ms a token p50", "while read p99", "p99 by p50"];
  return formatTable(["interference", "running", "prompt", ...outputs, ...tokens, "TTFT ms"], rows);
}

/** Workloads: rates, then latencies; empty where there is none. */
export function trafficTable(results: readonly ServeResult[]): string {
  const traffic = ofKind(results, "traffic");
  if (traffic.length === 0) return "";
  const name = ({ workload, shape, precision }: TrafficResult): string => `${workload}, ${shape} ${precision}`;
  const rates = traffic.map((result) => {
    const { requests, seconds, requestsPerSecond, outputTokensPerSecond, totalTokensPerSecond } = result;
    const { running, kv, preemptions, prefixHits, prefixMisses, schedulingMs } = result;
    const hits = prefixHits / Math.max(1, prefixHits + prefixMisses);
    return [
      ...[name(result), requests, show(seconds), show(requestsPerSecond), show(outputTokensPerSecond)],
      ...[show(totalTokensPerSecond), `${show(running.mean)} / ${running.max}`],
      ...[`${percent(kv.mean)} / ${percent(kv.max)}`, preemptions, percent(hits), show(schedulingMs)],
    ];
  });
  const rateHead = ["traffic", "requests", "s", "req/s", "output tok/s", "all tok/s", "running mean / max"];
  const times = (of: Summary): string => [of.mean, of.p50, of.p99].map(show).join(" / ");
  const waits = traffic.map((result) => [name(result), times(result.ttft), times(result.tpot), times(result.itl)]);
  return formatTable([...rateHead, "KV mean / max", "preemptions", "prefix hits", "scheduling ms"], rates) + "\n\n" +
    formatTable(["ms, mean / p50 / p99", "TTFT", "TPOT", "ITL"], waits);
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)}%`;
}
