import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { readConfig } from "../model/config.ts";
import { memorySource } from "../model/source.ts";
import { encodePrompt } from "../serving/prompt.ts";
import { errorText, withFlags } from "./flags.ts";

/** Holds what is shown of messages against what it should be. */
function assertShown(rows: readonly (readonly [said: string, shown: string])[]): void {
  for (const [said, shown] of rows) assertEquals(withFlags(said), shown);
}

Deno.test("options of loading are named by their flags, other words stay", () => {
  assertShown([
    ["kvMemory is 9, give contextLength", "--kv-memory is 9, give --context"],
    ["Raise memoryLimit.", "Raise --memory-limit."],
    ["maxTokens is 0, stopTokenIds, device and toString", "maxTokens is 0, stopTokenIds, device and toString"],
  ]);
});

Deno.test("what is quoted stays as people named it, and options beside it are flags", () => {
  assertShown([
    ['Cannot read "kvMemory.json"', 'Cannot read "kvMemory.json"'],
    ['Cannot load "kvMemory": kvMemory is 9', 'Cannot load "kvMemory": --kv-memory is 9'],
    ['"a" kvMemory "b"', '"a" --kv-memory "b"'],
    ["Permission denied: open './kvMemory/config.json'", "Permission denied: open './kvMemory/config.json'"],
    ["the model's kvMemory, or the device's memoryLimit", "the model's --kv-memory, or the device's --memory-limit"],
    ['Cannot read 5" of kvMemory', 'Cannot read 5" of --kv-memory'],
  ]);
});

Deno.test("addresses, paths and names of files stay as they are without quotes too", () => {
  assertShown([
    ["Cannot fetch https://x.org/kvMemory/a?b=kvDtype", "Cannot fetch https://x.org/kvMemory/a?b=kvDtype"],
    [
      "models/kvMemory, kvMemory/x, C:\\kvMemory, kvMemory.json",
      "models/kvMemory, kvMemory/x, C:\\kvMemory, kvMemory.json",
    ],
    ["my-kvMemory, kvMemory-2 and kvMemory@v1", "my-kvMemory, kvMemory-2 and kvMemory@v1"],
    [
      "keys get 0.5 (kvMemory), or maxNumSeqs; kvDtype: f16",
      "keys get 0.5 (--kv-memory), or --max-num-seqs; --kv-dtype: f16",
    ],
  ]);
});

Deno.test("what the library says of a model that people named leaves the name as it is", async () => {
  const error = await assertRejects(() => readConfig({ ...memorySource({}), name: "kvMemory" }), Error);
  assertEquals(errorText(error, false), 'Cannot load a model from "kvMemory": it has no config.json');
  const model = { name: "kvMemory", vocabSize: 1 };
  const { message } = assertThrows(() => encodePrompt({ prompt: "a" }, model), Error);
  assertEquals(withFlags(message).includes('"kvMemory" has no tokenizer'), true, message);
});

Deno.test("an error is a line, with flags and names as they are", () => {
  const error = new Error('Cannot read "kvMemory.json":\n  lower kvMemory');
  assertEquals(errorText(error, false), 'Cannot read "kvMemory.json": lower --kv-memory');
  const request = new Error("Cannot use logitBias: the model has no token 9; lower topK");
  assertEquals(errorText(request, false), "Cannot use --logit-bias: the model has no token 9; lower --top-k");
  assertEquals(errorText(new Error(""), false), "Error");
  assertEquals(errorText("stopped", false), "stopped");
});
