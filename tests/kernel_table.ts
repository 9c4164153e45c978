/**
 * The table of all kernels: every case of every family. Tests and benches are written once, over this.
 */
import { cases as activation } from "../kernels/activation_cases.ts";
import { cases as attention } from "../kernels/attention_cases.ts";
import { cases as copyBlocks } from "../kernels/copy_blocks_cases.ts";
import { mergeCases, partialsCases } from "../kernels/decode_attention_cases.ts";
import { cases as embedding } from "../kernels/embedding_cases.ts";
import { cases as int8Matmul } from "../kernels/int8_matmul_cases.ts";
import { cases as kvWrite, writeCases } from "../kernels/kv_write_cases.ts";
import { cases as matmul } from "../kernels/matmul_cases.ts";
import { cases as norm } from "../kernels/norm_cases.ts";
import { normQuantiseCases, quantiseCases } from "../kernels/quantise_cases.ts";
import { cases as quantisedMatmul } from "../kernels/quantised_matmul_cases.ts";
import { cases as rope } from "../kernels/rope_cases.ts";
import { cases as sampling } from "../kernels/sampling_cases.ts";
import { cases as tokenSlots } from "../kernels/token_slots_cases.ts";
import { cases as topLogprobs } from "../kernels/top_logprobs_cases.ts";
import type { KernelCase } from "../kernels/spec.ts";

/** All cases, family after family. Names are unique. */
export const KERNEL_CASES: readonly KernelCase<unknown>[] = [
  ...embedding,
  ...norm,
  ...matmul,
  ...quantisedMatmul,
  ...quantiseCases,
  ...normQuantiseCases,
  ...int8Matmul,
  ...rope,
  ...writeCases,
  ...kvWrite,
  ...attention,
  ...partialsCases,
  ...mergeCases,
  ...activation,
  ...sampling,
  ...topLogprobs,
  ...tokenSlots,
  ...copyBlocks,
];
