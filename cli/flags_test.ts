import { assertEquals } from "@std/assert";
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

Deno.test("an error is a line, with flags and names as they are", () => {
  const error = new Error('Cannot read "kvMemory.json":\n  lower kvMemory');
  assertEquals(errorText(error, false), 'Cannot read "kvMemory.json": lower --kv-memory');
  assertEquals(errorText(new Error(""), false), "Error");
  assertEquals(errorText("stopped", false), "stopped");
});
