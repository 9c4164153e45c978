/**
 * Each recorded operation by name, and how it is computed here: a new one is a new row. What can be computed in several ways
 * (a kernel, elementary operations, a CPU reference) is, and each way is held against what was recorded.
 */
import { embedding } from "../../kernels/embedding.ts";
import { swiglu } from "../../kernels/activation.ts";
import { matmul } from "../../kernels/matmul.ts";
import { rmsNorm } from "../../kernels/norm.ts";
import { rope } from "../../kernels/rope.ts";
import { filterReference, penaltiesReference } from "../../kernels/sampling_reference.ts";
import type { SamplingRow } from "../../kernels/sampling_rows.ts";
import { ropeFrequencies } from "../../model/rope_frequencies.ts";
import type { HostArray } from "../../tensor/dtype.ts";
import { kernelNode } from "../../tensor/node.ts";
import { Tensor, tensor } from "../../tensor/tensor.ts";
import { attention } from "./attention_operation.ts";
import { filterOnGpu, penaltiesOnGpu } from "./ops_sampling.ts";
import type { RecordedTensor } from "./tensors.ts";

/** Outputs by name, in row-major order. */
export type Results = Record<string, ArrayLike<number>>;

/** Computes a case out of its inputs and parameters as recorded, in one or several ways. */
export type Operation = (
  inputs: Record<string, RecordedTensor>,
  params: Record<string, unknown>,
) => Promise<Results[]>;

const product = (sizes: readonly number[]): number => sizes.reduce((a, b) => a * b, 1);

/** A recorded tensor in the graph. */
function load({ values, shape }: RecordedTensor, as: readonly number[] = shape): Tensor {
  return tensor(values as HostArray, { shape: as });
}

/** All but the last axis of a recorded tensor made one. */
function rows(recorded: RecordedTensor): Tensor {
  const columns = recorded.shape.at(-1)!;
  return load(recorded, [product(recorded.shape) / columns, columns]);
}

/** x Wᵀ by the kernel. */
function linearKernel(x: Tensor, weight: Tensor, gate = false): Tensor {
  const params = { format: { kind: "dense", dtype: "f32" } as const, ...(gate ? { gate } : {}) };
  return new Tensor(kernelNode(matmul, [x.node, weight.node], params));
}

/** Two tensors of one rank, one behind the other along the axis. */
function concatenate(first: Tensor, second: Tensor, axis: number): Tensor {
  const [length, more] = [first, second].map((part) => part.shape[axis] as number) as [number, number];
  const at = (size: number) => first.shape.map((_, i) => i === axis ? size : 0);
  return first.pad(at(0), at(more)).add(second.pad(at(length), at(0)));
}

async function out(...ways: Tensor[]): Promise<Results[]> {
  const results: Results[] = [];
  for (const way of ways) results.push({ out: await way.data() });
  return results;
}

/** Settings of a row of logits: each parameter lists one value a row. */
function samplingRow(params: Record<string, unknown>, row: number): SamplingRow {
  const at = (name: string, off: number): number => (params[name] as number[] | undefined)?.[row] ?? off;
  const ids = (name: string): number[] => (params[name] as number[][] | undefined)?.[row] ?? [];
  const history = new Map(ids("prompt_ids").map((token) => [token, 0]));
  for (const token of ids("output_ids")) history.set(token, (history.get(token) ?? 0) + 1);
  return {
    temperature: at("temperature", 1),
    topK: at("top_k", 0),
    topP: at("top_p", 1),
    minP: at("min_p", 0),
    repetitionPenalty: at("repetition_penalty", 1),
    presencePenalty: at("presence_penalty", 0),
    frequencyPenalty: at("frequency_penalty", 0),
    history,
  };
}

/** Each row of logits with its settings. */
function rowsOfLogits(logits: RecordedTensor, params: Record<string, unknown>): [Float64Array, SamplingRow][] {
  const [count, vocabulary] = logits.shape as [number, number];
  return Array.from({ length: count }, (_, row) => {
    const values = Float64Array.from(logits.values.subarray(row * vocabulary, (row + 1) * vocabulary));
    return [values, samplingRow(params, row)];
  });
}

/** Rotation by the kernel: the table has a row for each row of x, so positions may be as far as they like. */
function rotate(x: RecordedTensor, offsets: RecordedTensor, params: Record<string, unknown>): Tensor {
  const [batch, length, heads, headDim] = x.shape as [number, number, number, number];
  const rotaryDim = params.rotary_dim as number, count = batch * length;
  const { inverseFrequencies } = ropeFrequencies({ kind: "default", theta: params.base as number, rotaryDim });
  const angles = Array.from({ length: count }, (_, row) => {
    const position = Number(offsets.values[Math.floor(row / length)]) + row % length;
    return [...inverseFrequencies].map((frequency) => position * frequency);
  }).flat();
  const table = Float32Array.from(angles.flatMap((angle) => [Math.cos(angle), Math.sin(angle)]));
  const positions = tensor(Int32Array.from({ length: count }, (_, row) => row));
  return new Tensor(rope(
    load(x, [count, heads, headDim]).node,
    positions.node,
    tensor(table, { shape: [count, rotaryDim / 2, 2] }).node,
    { rotaryDim, traditional: params.traditional as boolean },
  ));
}

/** The operations. */
export const operations: Record<string, Operation> = {
  attention,
  rope: (inputs, params) => out(rotate(inputs.x!, inputs.offsets!, params)),
  rms_norm({ x, weight }, { eps }) {
    const plain = load(x!);
    const scale = plain.mul(plain).mean(-1, true).add(eps as number).rsqrt();
    return out(
      new Tensor(rmsNorm(rows(x!).node, load(weight!).node, eps as number)),
      plain.mul(scale).mul(load(weight!)),
    );
  },
  silu: ({ x }) => out(load(x!).silu()),
  swiglu({ gate, up }) {
    const both = concatenate(rows(gate!), rows(up!), 1);
    return out(new Tensor(swiglu(both.node)), load(gate!).silu().mul(load(up!)));
  },
  mlp({ x, gate_weight: gate, up_weight: up, down_weight: down }) {
    const plain = load(x!);
    const gated = plain.matmul(load(gate!).transpose()).silu().mul(plain.matmul(load(up!).transpose()));
    const fused = linearKernel(rows(x!), concatenate(load(gate!), load(up!), 0), true);
    return out(linearKernel(fused, load(down!)), gated.matmul(load(down!).transpose()));
  },
  linear({ x, weight, bias }) {
    const ways = [linearKernel(rows(x!), load(weight!)), rows(x!).matmul(load(weight!).transpose())];
    return out(...ways.map((way) => bias ? way.add(load(bias)) : way));
  },
  embedding({ weight, ids }) {
    const [rows, columns] = weight!.shape as [number, number], table = load(weight!);
    const stored = { format: { kind: "dense", dtype: "f32" } as const, rows, columns, tensors: [table.node] };
    return out(new Tensor(embedding(stored, load(ids!, [product(ids!.shape)]).node)), table.gather(load(ids!)));
  },
  softmax: ({ x }) => out(load(x!).softmax()),
  async filter({ logits }, params) {
    const settings = rowsOfLogits(logits!, params);
    const filtered = settings.map(([values, row]) => filterReference(values, row));
    const reference = {
      kept: filtered.flatMap(({ kept }) => [...kept]),
      probs: filtered.flatMap(({ probs }) => [...probs]),
    };
    return [reference, await filterOnGpu(logits!, settings.map(([, row]) => row))];
  },
  async penalties({ logits }, params) {
    const settings = rowsOfLogits(logits!, params);
    const reference = settings.flatMap(([values, row]) => [...penaltiesReference(values, row)]);
    return [{ out: reference }, await penaltiesOnGpu(logits!, settings.map(([, row]) => row))];
  },
};
