/**
 * What an adapter offers and a device was opened with: features, each of which can be switched off, and limits.
 *
 * @module
 */
import type { Caps } from "./kernel.ts";

/** Optional features; each can be switched off. */
export type Feature = "subgroups" | "f16" | "timestamps" | "packedDot" | "int64" | "coherent" | "fastReadback";

const wantedLimits = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxStorageBuffersPerShaderStage",
  "maxUniformBufferBindingSize",
] as const;

/** Memory that workgroups of one dispatch share (`@coherent`), by this runtime's name. */
const COHERENT = "wgpu-memory-decoration-coherent";

/** Opens an adapter with the features that it has and nobody switched off, and with its greatest limits. */
export async function request(
  adapter: GPUAdapter,
  disable: ReadonlySet<Feature>,
): Promise<{ gpu: GPUDevice; features: Set<string> }> {
  const requiredLimits = Object.fromEntries(wantedLimits.map((name) => [name, adapter.limits[name]]));
  const optional: [Feature, string, boolean][] = [
    ["f16", "shader-f16", adapter.features.has("shader-f16")],
    ["timestamps", "timestamp-query", adapter.features.has("timestamp-query")],
    ["int64", "wgpu-shader-int64", isCpu(adapter.info)], // this runtime's own feature: browsers refuse it
    ["coherent", COHERENT, true], // not listed either
    ["subgroups", "subgroups", true], // not listed by this runtime, and granted all the same
  ];
  const wanted = optional.filter(([feature, , offered]) => offered && !disable.has(feature)).map(([, name]) => name);
  const own = (name: string): boolean => name.startsWith("wgpu-");
  const unlisted = (name: string): boolean => name === "subgroups" || own(name);
  for (const features of [wanted, wanted.filter((name) => !own(name)), wanted.filter((name) => !unlisted(name))]) {
    try {
      const gpu = await adapter.requestDevice({ requiredFeatures: features as GPUFeatureName[], requiredLimits });
      return { gpu, features: new Set(features) };
    } catch (cause) {
      if (!features.some(unlisted)) throw cause;
      adapter = await navigator.gpu.requestAdapter().then((again) => again ?? adapter); // an adapter serves one request
    }
  }
  throw new Error("Cannot open the GPU device");
}

/** Whether an adapter computes on the CPU. */
function isCpu(info: GPUAdapterInfo): boolean {
  return info.isFallbackAdapter || /llvmpipe|swiftshader/i.test(`${info.description} ${info.device}`);
}

/** What a device can do. */
export function probe(
  gpu: GPUDevice,
  info: GPUAdapterInfo,
  features: ReadonlySet<string>,
  disable: ReadonlySet<Feature>,
): Caps {
  const { subgroupMinSize: least = 0, subgroupMaxSize: greatest = 0 } = info as {
    subgroupMinSize?: number;
    subgroupMaxSize?: number;
  };
  const subgroups = features.has("subgroups") && least === greatest && greatest >= 8; // kernels count on eight
  return {
    subgroups,
    subgroupSize: subgroups ? greatest : 1,
    f16: features.has("shader-f16"),
    timestamps: features.has("timestamp-query"),
    packedDot: !disable.has("packedDot"),
    int64: features.has("wgpu-shader-int64"),
    coherent: features.has(COHERENT),
    cpu: isCpu(info),
    maxBinding: gpu.limits.maxStorageBufferBindingSize,
    maxUniformBinding: gpu.limits.maxUniformBufferBindingSize,
    maxStorageBuffers: gpu.limits.maxStorageBuffersPerShaderStage,
    maxInvocations: gpu.limits.maxComputeInvocationsPerWorkgroup,
    workgroupMemory: gpu.limits.maxComputeWorkgroupStorageSize,
  };
}
