/** Single operations and sampling rules against torch in float64: `ops.json` lists the cases. */
import { type Operation, operations, type Results } from "./operations.ts";
import type { Report } from "./report.ts";
import { differValues, readTensors, type RecordedTensor } from "./tensors.ts";

interface TensorReference {
  tensor: string;
  shape: number[];
  dtype: string;
}

interface OpCase {
  name: string;
  op: string;
  params: Record<string, unknown>;
  inputs: Record<string, TensorReference>;
  outputs: Record<string, TensorReference>;
  /** Greatest difference between the formula in float32 and in float64. */
  float32_error: number;
}

/** Orders of summation differ: several times the error of one float32 evaluation is still float32. */
const ERROR_FACTOR = 8;
const RELATIVE_ERROR = 2e-6;

/** Runs every case. An operation that the table of operations lacks is a failure. */
export async function run(folder: string, report: Report): Promise<void> {
  const { cases } = JSON.parse(await Deno.readTextFile(`${folder}/ops.json`)) as { cases: OpCase[] };
  const tensors = await readTensors(`${folder}/ops.safetensors`);
  for (const recorded of cases) {
    const operation = operations[recorded.op];
    const difference = operation === undefined
      ? `there is no operation "${recorded.op}"`
      : await check(recorded, operation, tensors);
    if (difference === undefined) report.pass(recorded.name);
    else report.fail(recorded.name, difference);
  }
}

async function check(
  recorded: OpCase,
  operation: Operation,
  tensors: Map<string, RecordedTensor>,
): Promise<string | undefined> {
  const lookUp = ({ tensor }: TensorReference): RecordedTensor => {
    const found = tensors.get(tensor);
    if (found === undefined) throw new Error(`ops.safetensors has no tensor "${tensor}"`);
    return found;
  };
  try {
    const inputs = Object.fromEntries(Object.entries(recorded.inputs).map(([name, at]) => [name, lookUp(at)]));
    for (const results of await operation(inputs, recorded.params)) {
      const difference = differResults(recorded, results, lookUp);
      if (difference !== undefined) return difference;
    }
    return undefined;
  } catch (error) {
    return `throws ${error instanceof Error ? error.stack ?? error.message : error}`;
  }
}

function differResults(
  { outputs, float32_error: error }: OpCase,
  results: Results,
  lookUp: (at: TensorReference) => RecordedTensor,
): string | undefined {
  for (const [name, at] of Object.entries(outputs)) {
    const result = results[name];
    if (result === undefined) return `${name}: no result`;
    const expected = lookUp(at);
    const exact = expected.dtype !== "F32";
    const difference = differValues(
      result,
      expected.values,
      exact ? 0 : ERROR_FACTOR * error,
      exact ? 0 : RELATIVE_ERROR,
    );
    if (difference !== undefined) return `${name}: ${difference}`;
  }
  return undefined;
}
