import { assertThrows } from "@std/assert";
import { checkLoadOptions } from "./load_options.ts";
import type { LoadOptions } from "./model.ts";

Deno.test("options of loading are refused by name, with the value and a remedy", () => {
  const devices = 'give "high-performance", "low-power", "fallback" or a GPUDevice';
  const bad: [unknown, string][] = [
    [null, "options is null, give an object"],
    ["fast", 'options is "fast", give an object'],
    [{ kvMemry: 3 }, 'there is no option "kvMemry", did you mean kvMemory?'],
    [{ device: "x" }, `device is "x", ${devices}`],
    [{ device: null }, `device is null, ${devices}`],
    [{ device: {} }, `device is {}, ${devices}`],
    [{ precision: "half" }, 'precision is "half", give "exact" or "fast"'],
    [{ kvDtype: "f8" }, 'kvDtype is "f8", give "f16" or "f32"'],
    [{ warmUp: 1 }, "warmUp is 1, give true or false"],
    [{ prefixCache: "no" }, "prefixCache is no, give true or false"],
    [{ kvMemory: 0.5 }, "kvMemory is 0.5, a fraction, and drivers do not say of what: give memoryLimit"],
    [{ maxNumSeqs: 0 }, "maxNumSeqs is 0, give a whole number from 1 to 65535"],
    [{ maxNumSeqs: 1e8 }, "maxNumSeqs is 100000000, give a whole number from 1 to 65535"],
    [{ maxNumBatchedTokens: 1.5 }, "maxNumBatchedTokens is 1.5, give a whole number from 1 to 1048576"],
    [{ maxNumBatchedTokens: 2 ** 21 }, "maxNumBatchedTokens is 2097152, give a whole number from 1 to 1048576"],
    [{ memoryLimit: 0 }, "memoryLimit is 0, give a number of bytes above 0"],
    [{ signal: AbortSignal.abort(new Error("enough")) }, "enough"],
  ];
  for (const [options, message] of bad) assertThrows(() => checkLoadOptions(options as LoadOptions), Error, message);
  checkLoadOptions({});
  checkLoadOptions({ kvMemry: undefined } as LoadOptions);
  checkLoadOptions({ device: "fallback", precision: "fast", kvDtype: "f32", memoryLimit: 1e9 });
});
