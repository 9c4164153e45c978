/**
 * Copies blocks of keys and values before a step that is going to write into a block which others hold too.
 *
 * @module
 */
import { copyBlocks } from "../kernels/copy_blocks.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { Device } from "../tensor/device.ts";
import { Sym } from "../tensor/dim.ts";
import { buffer, input } from "../tensor/node.ts";
import { compile, type Program } from "../tensor/program.ts";
import type { Submission } from "../tensor/submission.ts";
import type { BlockCopy } from "./block_manager.ts";

/** Most blocks that one run of the program copies. */
const COPIES = 64;

/** Copies blocks in the pools of all layers. */
export class BlockCopier {
  readonly #device: Device;
  readonly #cache: KvCache;
  #program: Program | undefined;

  /** Nothing is compiled until {@linkcode BlockCopier.compile} or the first copy. */
  constructor(device: Device, cache: KvCache) {
    this.#device = device;
    this.#cache = cache;
  }

  /** Compiles what copies, once. */
  compile(): Program {
    const { keys, values, options: { blockSize } } = this.#cache;
    return this.#program ??= compile(this.#device, () => {
      const pairs = input("pairs", "i32", [new Sym("copies", COPIES), 2]);
      return [...keys, ...values].map((pool) => copyBlocks(buffer(pool), pairs, { blockSize }));
    }, { label: "copies of blocks" });
  }

  /** Adds copies to a submission. */
  copy(copies: readonly BlockCopy[], submission: Submission): void {
    for (let first = 0; first < copies.length; first += COPIES) {
      const some = copies.slice(first, first + COPIES);
      const pairs = some.flatMap(({ from, to }) => [from, to]);
      this.compile().run({ inputs: { pairs }, sizes: { copies: some.length } }, submission);
    }
  }

  /** Frees the program. */
  dispose(): void {
    this.#program?.dispose();
  }
}
