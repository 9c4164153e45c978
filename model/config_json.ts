/**
 * The edge where a checkpoint's JSON files become typed values: what Python writes that JSON cannot say is read back,
 * and a schema's complaint becomes a sentence that names the field and its value.
 *
 * @module
 */
import type { z } from "zod";

/** A model, or a way of storing one, that is known and not supported (yet). */
export class UnsupportedModelError extends Error {
  /**
   * Words what is not supported.
   *
   * @param modelType the config's `model_type`.
   * @param reason what is not supported, and what would be.
   */
  constructor(readonly modelType: string, reason: string) {
    super(`Cannot load model of type "${modelType}": ${reason}`);
    this.name = "UnsupportedModelError";
  }
}

/**
 * Removes the properties that are `null`, which Python's configs write for "absent", and turns `{"__float__":
 * "Infinity"}`, which they write for a number that JSON cannot hold, into that number.
 */
export function readPythonJson(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(readPythonJson);
  if (typeof value !== "object" || value === null) return value;
  const float = (value as { __float__?: unknown }).__float__;
  if (typeof float === "string") return Number(float);
  const entries = Object.entries(value).filter(([, property]) => property !== null);
  return Object.fromEntries(entries.map(([key, property]) => [key, readPythonJson(property)]));
}

/**
 * Checks a parsed JSON value against a schema.
 *
 * @throws {Error} that names the first field at fault, its value, and what would be right.
 */
export function checkJson<T>(schema: z.ZodType<T>, path: string, json: unknown): T {
  const value = readPythonJson(json);
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  if (issue.path.length === 0) throw new Error(`Cannot load ${path}: ${issue.message}`);
  const found = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], value);
  const shown = found === undefined ? "absent" : JSON.stringify(found);
  throw new Error(`Cannot load ${path}: ${issue.path.map(String).join(".")} is ${shown}: ${issue.message}`);
}
