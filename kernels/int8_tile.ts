/**
 * A tile form of an int8 product (`int8_tiles.ts`) with everything that follows from it.
 *
 * @module
 */
import type { Caps } from "../tensor/kernel.ts";
import { stageColumns, type TileForm } from "./int8_variants.ts";
import { type Int8Product, type Int8Weight, int8Weight } from "./int8_weight.ts";

/** Outputs of a tile for each token. */
export function tileOutputs({ rows, product: { gate } }: Tile): number {
  return gate ? rows / 2 : rows;
}

/** A tile form with everything that follows from it. */
export interface Tile extends TileForm {
  readonly product: Int8Product;
  readonly weight: Int8Weight;
  /** Invocations along rows and along tokens, and of a slice. */
  readonly across: number;
  readonly down: number;
  readonly threads: number;
  /** Blocks of 32 columns, and vectors of 16 codes, of a stage. */
  readonly blocks: number;
  readonly vectors: number;
  /**
   * Whether a stage is two blocks that share each weight row's scale: sums of both meet before that scale multiplies them, in six
   * float operations an output rather than eight, which is worth 7%: issuing instructions is a tile's limit.
   */
  readonly pair: boolean;
  /** Scales of a token in a stage. */
  readonly scaleBlocks: number;
  /** Scales of a weight row in a stage. */
  readonly affines: number;
  /** Stages of all columns, and of a slice. */
  readonly stages: number;
  readonly sliceStages: number;
}

/** The tile of a product in a form. */
export function tileOf(product: Int8Product, form: TileForm, caps: Caps): Tile {
  const stage = stageColumns(product.columns), weight = int8Weight(product.format, product.columns, caps);
  const across = form.rows / form.threadRows, down = form.tokens / form.threadTokens;
  const stages = product.columns / stage;
  const pair = stage === 64 && weight.groupBlocks >= 2;
  return {
    ...form,
    pair,
    scaleBlocks: pair ? 1 : stage / 32,
    product,
    weight,
    across,
    down,
    threads: across * down,
    blocks: stage / 32,
    vectors: stage / 16,
    affines: Math.max(1, stage / 32 / weight.groupBlocks),
    stages,
    sliceStages: Math.ceil(stages / form.slices),
  };
}
