/** Cases of keeping tokens: places in any order, some that do not exist. */
import type { KernelCase } from "./spec.ts";
import { keepTokensKernel } from "./token_slots.ts";

/** Cases of the kernel. */
export const cases: KernelCase<null>[] = [{
  name: "keep_tokens",
  kernel: keepTokensKernel,
  random(random) {
    const slots = random.integer(1, 300), rows = random.integer(1, 150);
    const free = Array.from({ length: slots + rows }, (_, i) => i < slots ? i : i % 2 ? -i : i);
    const take = (): number => free.splice(random.integer(0, free.length - 1), 1)[0]!;
    const whole = (length: number, value: () => number): Int32Array<ArrayBuffer> => Int32Array.from({ length }, value);
    const id = (): number => random.integer(0, 150_000);
    return {
      params: null,
      inputs: [
        { dtype: "i32", shape: [slots], data: whole(slots, id) },
        { dtype: "i32", shape: [rows], data: whole(rows, id) },
        { dtype: "i32", shape: [rows], data: whole(rows, take) },
      ],
    };
  },
  tolerance: () => [0],
}];
