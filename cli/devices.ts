/**
 * `tinyllm devices`: the GPUs that WebGPU offers, and what of them matters to a model.
 *
 * @module
 */
import type { CommandContext } from "./context.ts";
import { EXIT } from "./errors.ts";
import type { Options } from "./options.ts";
import { formatBinaryBytes, formatInteger, type Style, styleOf, wrap } from "./style.ts";

type DeviceName = NonNullable<Options["device"]>;

/** A GPU. */
export interface DeviceReport {
  /** The values of `--device` that mean it. */
  device: DeviceName[];
  name: string;
  vendor: string;
  architecture: string;
  /** Whether it is the CPU in a GPU's clothes. */
  fallback: boolean;
  subgroupSizes: [number, number];
  features: string[];
  limits: Record<(typeof LIMITS)[number][0], number>;
}

/** The limits that decide how large a weight may be and how a kernel is laid out. */
const LIMITS = [
  ["maxBufferSize", "largest buffer", formatBinaryBytes],
  ["maxStorageBufferBindingSize", "largest storage binding", formatBinaryBytes],
  ["maxComputeWorkgroupStorageSize", "workgroup memory", formatBinaryBytes],
  ["maxComputeInvocationsPerWorkgroup", "threads a workgroup", formatInteger],
  ["maxComputeWorkgroupsPerDimension", "workgroups a dimension", formatInteger],
  ["maxStorageBuffersPerShaderStage", "storage buffers a kernel", formatInteger],
] as const;

/** Vulkan drivers give a number: PCI's, or for Mesa the Khronos registry's. */
const VENDORS: Readonly<Record<string, string>> = {
  4098: "AMD",
  4203: "Apple",
  4318: "NVIDIA",
  5045: "Arm",
  20803: "Qualcomm",
  32902: "Intel",
  65541: "Mesa",
};

const REQUESTS: Readonly<Record<DeviceName, GPURequestAdapterOptions>> = {
  "high-performance": { powerPreference: "high-performance" },
  "low-power": { powerPreference: "low-power" },
  fallback: { forceFallbackAdapter: true },
};

/** Runs the command. */
export async function devices({ gpu, options, terminal }: CommandContext): Promise<number> {
  const reports = await findDevices(gpu());
  if (reports.length === 0) {
    throw new Error(
      "No WebGPU adapter answers here: install a Vulkan driver, on Debian with apt-get install libvulkan1 mesa-vulkan-drivers",
    );
  }
  const style = styleOf(terminal, terminal.stdout);
  const text = options.json
    ? JSON.stringify({ devices: reports })
    : reports.map((report) => describe(report, terminal.columns(), style)).join("\n\n");
  await terminal.stdout.write(text + "\n");
  return EXIT.ok;
}

/** One report a GPU, whatever number of names it has. */
async function findDevices(gpu: GPU | undefined): Promise<DeviceReport[]> {
  const reports: DeviceReport[] = [];
  for (const [name, request] of Object.entries(REQUESTS) as [DeviceName, GPURequestAdapterOptions][]) {
    const adapter = await gpu?.requestAdapter(request);
    if (!adapter) continue;
    const report = reportOf(name, adapter);
    const identity = (device: DeviceReport): string => JSON.stringify({ ...device, device: [] });
    const known = reports.find((other) => identity(other) === identity(report));
    if (known) known.device.push(name);
    else reports.push(report);
  }
  return reports;
}

function reportOf(device: DeviceName, adapter: GPUAdapter): DeviceReport {
  const info = adapter.info;
  return {
    device: [device],
    name: info.description || info.device || "unnamed GPU",
    vendor: VENDORS[info.vendor] ?? info.vendor,
    architecture: info.architecture,
    fallback: info.isFallbackAdapter,
    subgroupSizes: [info.subgroupMinSize, info.subgroupMaxSize],
    features: [...adapter.features as Iterable<string>].sort(),
    limits: Object.fromEntries(LIMITS.map(([key]) => [key, adapter.limits[key] ?? 0])) as DeviceReport["limits"],
  };
}

function describe(report: DeviceReport, width: number, { bold, dim }: Style): string {
  const row = (name: string, value: string): string => `  ${dim(name.padEnd(24))}  ${value}`;
  const has = (feature: string): string => report.features.includes(feature) ? "yes" : "no";
  const [least, most] = report.subgroupSizes;
  return [
    bold(report.name) + (report.fallback ? " (runs on the CPU)" : ""),
    row("--device", report.device.join(", ")),
    row(
      "vendor, architecture",
      [report.vendor, report.architecture].filter((part) => part !== "").join(", ") || "unknown",
    ),
    row("half precision (f16)", has("shader-f16")),
    row("timestamps", has("timestamp-query")),
    row("subgroups", most > 0 ? (least === most ? `of ${most}` : `of ${least} to ${most}`) : "unknown"),
    ...LIMITS.map(([key, name, format]) => row(name, format(report.limits[key]))),
    ...wrap(report.features.join(", ") || "none", width - 28).map((line, index) =>
      row(index === 0 ? "features" : "", line)
    ),
  ].join("\n");
}
