/**
 * How MLX says which matrices of a checkpoint are quantised and how: one setting for all, exceptions by module path,
 * and for modules without an entry the shapes of the tensors themselves. As mlx-lm 0.32 reads it.
 *
 * @module
 */
import { z } from "zod";
import { checkJson, UnsupportedModelError } from "./config_json.ts";

/** Group-affine codes: each group of `groupSize` codes of `bits` bits in a row shares a scale and a bias. */
export interface AffineQuantization {
  /** 32, 64 or 128. */
  readonly groupSize: number;
  /** 2, 3, 4, 5, 6 or 8. */
  readonly bits: number;
}

/** A config's `quantization`. */
export interface MlxQuantization extends AffineQuantization {
  /** Settings of single modules by path (`model.layers.0.mlp.down_proj`); `false`: stored as plain numbers. */
  readonly overrides: ReadonlyMap<string, AffineQuantization | false>;
}

/** The shapes of a module's stored tensors, which tell how a module without an entry is quantised. */
export interface QuantizedShape {
  /** Columns of the matrix once dequantised. */
  readonly inFeatures: number;
  /** Columns of `<path>.weight`: 32-bit words a row. */
  readonly weightColumns: number;
  /** Columns of `<path>.scales`: groups a row. */
  readonly scaleColumns: number;
}

/** The bits that a code can have. */
export const QUANTIZED_BITS: readonly number[] = [2, 3, 4, 5, 6, 8];
/** The sizes that a group can have. */
export const QUANTIZED_GROUP_SIZES: readonly number[] = [32, 64, 128];

/** MLX's defaults of affine mode, for what an override leaves out; the top level's numbers do not count there. */
const AFFINE_DEFAULTS = { group_size: 64, bits: 4 };

const SETTINGS = z.looseObject({
  group_size: z.int().optional(),
  bits: z.int().optional(),
  mode: z.string().optional(),
  quantize_activations: z.boolean().optional(),
});

/**
 * Reads a config's `quantization`.
 *
 * @param config the whole config, nulls removed.
 * @returns undefined for a checkpoint without quantisation.
 * @throws {UnsupportedModelError} for foreign methods (awq, gptq, …) and MLX modes other than affine.
 */
export function parseQuantization(config: Record<string, unknown>, modelType: string): MlxQuantization | undefined {
  if (config.quantization === undefined) {
    if (config.quantization_config !== undefined) refuseForeign(config.quantization_config, modelType);
    return undefined;
  }
  const fields = checkJson(z.record(z.string(), z.unknown()), "config.json", config.quantization);
  const top = parseSettings(fields, "quantization", modelType);
  const overrides = new Map<string, AffineQuantization | false>();
  for (const [path, value] of Object.entries(fields)) {
    if (path === "quantize_activations") continue;
    if (value === false) overrides.set(path, false);
    else if (value === true) overrides.set(path, top);
    else if (typeof value === "object") overrides.set(path, parseSettings(value, path, modelType));
  }
  return { ...top, overrides };
}

/** A `quantization_config` alone is not MLX's: its layouts are other ones, which would load as noise. */
function refuseForeign(quantization: unknown, modelType: string): never {
  const method = (quantization as { quant_method?: unknown }).quant_method;
  if (method === undefined) {
    throw new Error("Cannot load config.json: quantization_config has no quant_method, and there is no quantization");
  }
  throw new UnsupportedModelError(
    modelType,
    `weights quantised by ${JSON.stringify(method)} are not supported; take the float weights, or an MLX conversion`,
  );
}

function parseSettings(value: unknown, where: string, modelType: string): AffineQuantization {
  const settings = checkJson(SETTINGS, `config.json (${where})`, value);
  const mode = settings.mode ?? "affine";
  if (mode !== "affine") {
    throw new UnsupportedModelError(modelType, `${where} has MLX mode "${mode}"; supported is affine`);
  }
  if (settings.quantize_activations) {
    throw new UnsupportedModelError(modelType, `${where} quantises activations, which is not supported`);
  }
  const affine = {
    groupSize: settings.group_size ?? AFFINE_DEFAULTS.group_size,
    bits: settings.bits ?? AFFINE_DEFAULTS.bits,
  };
  checkAffine(affine, `Cannot load config.json: ${where}`);
  return affine;
}

function checkAffine({ groupSize, bits }: AffineQuantization, where: string): void {
  if (!QUANTIZED_BITS.includes(bits)) {
    throw new Error(`${where} has ${bits} bits; supported are ${QUANTIZED_BITS.join(", ")}`);
  }
  if (!QUANTIZED_GROUP_SIZES.includes(groupSize)) {
    throw new Error(`${where} has groups of ${groupSize}; supported are ${QUANTIZED_GROUP_SIZES.join(", ")}`);
  }
}

/**
 * How a module's matrix is stored.
 *
 * @param quantization the config's; a module can be quantised without any, if it has scales.
 * @param path the module's path, without `.weight`.
 * @param stored its tensors' shapes, where `<path>.scales` exists; undefined says that the weight is plain numbers.
 * @returns undefined for plain numbers.
 * @throws {Error} if the setting does not fit the shapes, or forbids the scales that are there.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { quantizationOf } from "./quantization.ts";
 *
 * const stored = { inFeatures: 128, weightColumns: 16, scaleColumns: 2 };
 * assertEquals(quantizationOf(undefined, "lm_head", stored), { groupSize: 64, bits: 4 });
 * assertEquals(quantizationOf(undefined, "lm_head"), undefined);
 * ```
 */
export function quantizationOf(
  quantization: MlxQuantization | undefined,
  path: string,
  stored?: QuantizedShape,
): AffineQuantization | undefined {
  const entry = quantization?.overrides.get(path);
  if (entry === false || !stored) {
    // Recipes list weightless modules and tied heads too, so that an entry alone promises no tensor.
    if (stored) throw new Error(`Cannot load "${path}": config.json says it is not quantised, but it has scales`);
    return undefined;
  }
  const { inFeatures, weightColumns, scaleColumns } = stored;
  const affine = entry ?? { groupSize: inFeatures / scaleColumns, bits: weightColumns * 32 / inFeatures };
  checkAffine(
    affine,
    `Cannot load "${path}": with ${weightColumns} words and ${scaleColumns} scales a row of ${inFeatures}, it`,
  );
  if (affine.groupSize * scaleColumns !== inFeatures || affine.bits * inFeatures !== weightColumns * 32) {
    throw new Error(
      `Cannot load "${path}": ${affine.bits} bits in groups of ${affine.groupSize} do not fit a row of ${inFeatures} ` +
        `stored as ${weightColumns} words and ${scaleColumns} scales`,
    );
  }
  return { groupSize: affine.groupSize, bits: affine.bits };
}
