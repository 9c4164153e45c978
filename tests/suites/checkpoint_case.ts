/**
 * A folder with a checkpoint, `expected.json` and `expected.safetensors`: `models` and `mlx` consist of such. One folder is
 * one case; its weights leave the device before the next one's come.
 */
import { readConfig, UnsupportedModelError } from "../../model/config.ts";
import { fileSource } from "../../model/deno/file_source.ts";
import type { Device } from "../../tensor/device.ts";
import { differActivations } from "./activations.ts";
import { type Continuation, differContinuation, longest } from "./continuation.ts";
import type { Report } from "./report.ts";
import { SequenceRunner } from "./sequence_runner.ts";
import { readTensors, type RecordedTensor } from "./tensors.ts";

/** `expected.json`: rows of logits stand at `positions`, or from `first_position` to the end of the prompt. */
export interface Expected {
  prompts: {
    ids: number[];
    logits: string;
    positions?: number[];
    first_position?: number;
    greedy: number[];
    logprobs_of_greedy?: number[];
  }[];
  /** Tensors with the activations of one of the prompts. */
  activations?: { prompt: number; names: string[] };
}

/** The recorded prompts of a folder. */
export function continuations({ prompts }: Expected, tensors: Map<string, RecordedTensor>): Continuation[] {
  return prompts.map(({ ids, logits, positions, first_position: first = 0, greedy, logprobs_of_greedy: logprobs }) => {
    const recorded = tensors.get(logits);
    if (recorded === undefined) throw new Error(`expected.safetensors has no tensor "${logits}"`);
    return {
      ids,
      positions: positions ?? Array.from({ length: ids.length - first }, (_, i) => first + i),
      logits: recorded.values,
      greedy,
      ...(logprobs && { logprobs }),
    };
  });
}

/** Runs every folder in the folder. */
export async function runCheckpoints(device: Device, folder: string, report: Report): Promise<void> {
  const entries = await Array.fromAsync(Deno.readDir(folder));
  const names = entries.filter((entry) => entry.isDirectory).map(({ name }) => name).sort();
  for (const name of names) {
    try {
      const difference = await differCheckpoint(device, `${folder}/${name}`);
      if (difference === undefined) report.pass(name);
      else report.fail(name, difference);
    } catch (error) {
      if (error instanceof UnsupportedModelError) report.skip(name, error.modelType);
      else report.fail(name, `throws ${error instanceof Error ? error.stack ?? error.message : error}`);
    }
  }
}

async function differCheckpoint(device: Device, folder: string): Promise<string | undefined> {
  const source = fileSource(folder);
  await readConfig(source); // what is not supported says so before its answers are looked for
  const expected: Expected = JSON.parse(await Deno.readTextFile(`${folder}/expected.json`));
  const tensors = await readTensors(`${folder}/expected.safetensors`);
  const prompts = continuations(expected, tensors);
  const { maxPrompt, maxContext } = longest(prompts);
  using runner = await SequenceRunner.open(device, source, maxPrompt, maxContext);
  for (const [index, prompt] of prompts.entries()) {
    const difference = await differContinuation(runner, prompt);
    if (difference !== undefined) return `prompt ${index}: ${difference}`;
  }
  return await differActivations(device, source, expected, tensors);
}
