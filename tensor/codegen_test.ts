import { assertEquals } from "@std/assert";
import { foldGrid, literalWgsl } from "./codegen.ts";

Deno.test("constants print as WGSL literals of their type", () => {
  const cases: [number, string, string][] = [
    [0, "f32", "0.0f"],
    [-0, "f32", "0.0f"],
    [1, "f32", "1.0f"],
    [-2.5, "f32", "(-2.5f)"],
    [0.1, "f32", "0.10000000149011612f"],
    [1e-30, "f32", "1.0000000031710769e-30f"],
    [1e21, "f32", "1.0000000200408773e+21f"],
    [3.4028234663852886e38, "f32", "3.4028234663852886e+38f"],
    [7, "i32", "7i"],
    [-7, "i32", "(-7i)"],
    [-(2 ** 31), "i32", "(-2147483647i - 1i)"],
    [2 ** 32 - 1, "u32", "4294967295u"],
    [1, "bool", "true"],
    [0, "bool", "false"],
  ];
  for (const [value, dtype, text] of cases) assertEquals(literalWgsl(value, dtype), text);
});

Deno.test("a grid covers its workgroups within WebGPU's limit of a dimension", () => {
  for (const groups of [0, 1, 65535, 65536, 100_000, 5_000_000]) {
    const [x, y, z] = foldGrid(groups);
    assertEquals([x <= 65535, y <= 65535, z, x * y >= groups, x * y - groups < y + 1], [true, true, 1, true, true]);
  }
});
