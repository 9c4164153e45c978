/**
 * The decoder in two ways, elementary operations and kernels over the paged cache, gives the same logits; on devices that
 * lack a feature too.
 */
import { assertEquals } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { readConfig, UnsupportedModelError } from "../model/config.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { plainLogits } from "../model/plain_decoder.ts";
import { type Device, type Feature, openDevice } from "../tensor/device.ts";
import { LOGIT_ERROR } from "./suites/continuation.ts";
import { SequenceRunner } from "./suites/sequence_runner.ts";
import { differValues } from "./suites/tensors.ts";

/** Tokens of the prompt: more than a block of the cache holds. */
const LENGTH = 19;

async function* checkpoints(): AsyncGenerator<string> {
  for (const suite of ["models", "mlx"]) {
    for await (const entry of Deno.readDir(`${import.meta.dirname}/fixtures/${suite}`)) {
      if (entry.isDirectory) yield `${import.meta.dirname}/fixtures/${suite}/${entry.name}`;
    }
  }
}

async function compareTwins(device: Device, folder: string): Promise<void> {
  const source = fileSource(folder), config = await readConfig(source);
  const ids = Array.from({ length: LENGTH }, (_, i) => (i * 193 + 7) % config.vocabSize);
  const plain = await (await plainLogits(await openCheckpoint(source), config, ids)).data(device);
  using runner = await SequenceRunner.open(device, source, LENGTH, LENGTH);
  const fast = await runner.prompt(ids, ids.map((_, position) => position));
  assertEquals(differValues(fast, plain, LOGIT_ERROR), undefined);
}

Deno.test("the plain decoder and the fast one give the same logits", async (context) => {
  const device = await openDevice();
  for await (const folder of checkpoints()) {
    await context.step(folder.split("/").at(-1)!, async () => {
      try {
        await compareTwins(device, folder);
      } catch (error) {
        if (!(error instanceof UnsupportedModelError)) throw error;
      }
    });
  }
  device.close();
});

const OPTIONAL: readonly Feature[] = ["subgroups", "f16", "timestamps", "packedDot"];

for (const disable of [...OPTIONAL.map((feature) => [feature]), OPTIONAL]) {
  Deno.test(`a model gives the same logits without ${disable.join(", ")}`, async () => {
    const device = await openDevice({ disable });
    try {
      await compareTwins(device, `${import.meta.dirname}/fixtures/mlx/qwen2-tiny-4bit`);
    } finally {
      device.close();
    }
  });
}
