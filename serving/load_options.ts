/**
 * Options of loading, refused before anything is downloaded.
 *
 * @module
 */
import type { LoadOptions } from "./model.ts";
import { unknownOption } from "./option_names.ts";

const PREFERENCES: readonly unknown[] = ["high-performance", "low-power", "fallback"];

/** Most sequences and tokens of a step: more workgroups side by side, or larger arrays, no device has. */
const MOST = { maxNumSeqs: 65_535, maxNumBatchedTokens: 2 ** 20 } as const;

/**
 * Refuses what cannot be meant; the context's length is checked once the model is known.
 *
 * @throws {Error} naming the option, its value and what would be right; the signal's reason if it is aborted already.
 */
export function checkLoadOptions(options: LoadOptions): void {
  if (typeof options !== "object" || options === null) {
    throw new TypeError(
      `Cannot load the model: options is ${Deno.inspect(options)}, give an object such as { precision: "exact" }`,
    );
  }
  const unknown = unknownOption(options, "load");
  if (unknown !== undefined) throw new TypeError(`Cannot load the model: ${unknown}`);
  const { precision = "exact", kvDtype = "f16", memoryLimit, device, signal } = options;
  signal?.throwIfAborted();
  if (precision !== "exact" && precision !== "fast") {
    throw new Error(`Cannot load the model: precision is "${precision}", give "exact" or "fast"`);
  }
  if (kvDtype !== "f16" && kvDtype !== "f32") {
    throw new Error(`Cannot load the model: kvDtype is "${kvDtype}", give "f16" or "f32"`);
  }
  if (memoryLimit !== undefined && !(memoryLimit > 0)) {
    throw new RangeError(`Cannot load the model: memoryLimit is ${memoryLimit}, give a number of bytes above 0`);
  }
  checkEngineOptions(options);
  if (device !== undefined && !PREFERENCES.includes(device) && !isDevice(device)) {
    throw new TypeError(
      `Cannot load the model: device is ${
        Deno.inspect(device)
      }, give "high-performance", "low-power", "fallback" or a ` +
        "GPUDevice",
    );
  }
}

/** What says how requests share the device. */
function checkEngineOptions(options: LoadOptions): void {
  const { maxNumSeqs, maxNumBatchedTokens, kvMemory, memoryLimit = Infinity } = options;
  const { prefixCache = true, warmUp = false, policy = "fcfs" } = options;
  for (const [name, most] of Object.entries(MOST)) {
    const value = options[name as keyof typeof MOST];
    if (value === undefined || (Number.isInteger(value) && value >= 1 && value <= most)) continue;
    throw new RangeError(`Cannot load the model: ${name} is ${value}, give a whole number from 1 to ${most}`);
  }
  if (maxNumBatchedTokens !== undefined && maxNumSeqs !== undefined && maxNumBatchedTokens < maxNumSeqs) {
    throw new RangeError(
      `Cannot load the model: maxNumBatchedTokens is ${maxNumBatchedTokens}, and a step has a token for each of ${maxNumSeqs} ` +
        `sequences: give that or more`,
    );
  }
  if (kvMemory !== undefined && !(kvMemory > 0 && kvMemory < Infinity)) {
    throw new RangeError(`Cannot load the model: kvMemory is ${kvMemory}, give bytes, or a fraction up to 1`);
  }
  if (kvMemory !== undefined && kvMemory <= 1 && memoryLimit === Infinity) {
    throw new RangeError(
      `Cannot load the model: kvMemory is ${kvMemory}, a fraction, and drivers do not say of what: give memoryLimit too, or bytes`,
    );
  }
  for (const [name, value] of Object.entries({ prefixCache, warmUp })) {
    if (typeof value !== "boolean") {
      throw new TypeError(`Cannot load the model: ${name} is ${value}, give true or false`);
    }
  }
  if (policy !== "fcfs" && policy !== "priority") {
    throw new Error(`Cannot load the model: policy is "${policy}", give "fcfs" or "priority"`);
  }
}

/** By what it can do, not by its class: a caller may wrap the device to watch it. */
function isDevice(value: unknown): boolean {
  return typeof (value as GPUDevice | null)?.createBuffer === "function";
}
