/**
 * Loading: a device, files, weights onto the device, a pool for keys and values. Whatever fails, nothing stays behind.
 *
 * @module
 */
import { ChatTemplate } from "../model/chat_template.ts";
import { openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { loadDecoder } from "../model/decoder_weights.ts";
import { readGenerationConfig } from "../model/generation_config.ts";
import { KvCache } from "../model/kv_cache.ts";
import { readJson, type Source } from "../model/source.ts";
import { Tokenizer } from "../model/tokenizer.ts";
import { type Device, openDevice, wrapDevice } from "../tensor/device.ts";
import { checkLoadOptions } from "./load_options.ts";
import { LoadedModel } from "./loaded_model.ts";
import { BLOCK_SIZE, chooseContextLength, choosePoolBlocks, type Room } from "./memory.ts";
import type { LoadOptions, Model } from "./model.ts";
import { type NamedSource, openNamed } from "./model_source.ts";

/**
 * Loads a model.
 *
 * @param source A folder, a Hugging Face id (`Qwen/Qwen2-0.5B-Instruct`), files from elsewhere, or nothing: the story model.
 * @throws {Error} if there is no such model or device, the model is not supported, or memory does not suffice; nothing stays
 * allocated then.
 *
 * @example
 * ```ts
 * import { loadModel } from "@tinyllm/tinyllm";
 *
 * await using model = await loadModel();
 * const messages = [{ role: "user", content: "Tell me a story about a brave mouse" }];
 * for await (const chunk of model.generate({ messages, maxTokens: 20 })) console.log(chunk.text);
 * ```
 */
export async function loadModel(source?: string | Source, options: LoadOptions = {}): Promise<Model> {
  checkLoadOptions(options);
  return await load(await openNamed(source, options), options);
}

/** Loads a model, and returns it with its inner parts in sight. */
export async function load(named: NamedSource, options: LoadOptions): Promise<LoadedModel> {
  const { device: wanted, memoryLimit, signal } = options;
  const text = loadText(named.source);
  text.catch(() => {}); // awaited below, unless something fails before
  const ownsDevice = typeof wanted !== "object";
  const device = ownsDevice
    ? await openDevice({ ...(wanted && { preference: wanted }), ...(memoryLimit !== undefined && { memoryLimit }) })
    : await wrapDevice(wanted, memoryLimit);
  device.debug = options.debug;
  const release: (() => void)[] = [ownsDevice ? (): void => device.close() : (): void => device.readback.destroy()];
  try {
    signal?.throwIfAborted();
    const { room, contextLength } = await plan(named.source, device, options);
    const { config, checkpoint, kvDtype } = room;
    const weights = await loadDecoder(device, checkpoint, config, {
      positions: contextLength,
      onBytes: loadProgress(checkpoint.totalBytes, options),
      signal,
    });
    release.push(() => weights.release());
    const numBlocks = choosePoolBlocks(contextLength, room);
    const cache = new KvCache(device, config, { numBlocks, blockSize: BLOCK_SIZE, dtype: kvDtype });
    release.push(() => cache.release());
    const { name } = named;
    const { tokenizer, chatTemplate, generation } = await text;
    return new LoadedModel({
      ...{ name, config, generation, tokenizer, chatTemplate, contextLength },
      ...{ device, ownsDevice, weights, cache, precision: options.precision ?? "exact" },
    });
  } catch (cause) {
    release.reverse().forEach((free) => free());
    throw cause;
  }
}

async function plan(
  source: Source,
  device: Device,
  options: LoadOptions,
): Promise<{ room: Room; contextLength: number }> {
  const [config, checkpoint] = await Promise.all([readConfig(source), openCheckpoint(source)]);
  checkBindings(device, config);
  const { caps, memoryLimit, allocated: inUse } = device;
  const room: Room = { config, checkpoint, caps, memoryLimit, inUse, kvDtype: options.kvDtype ?? "f16" };
  return { room, contextLength: chooseContextLength(options.contextLength, room) };
}

/** What a caller's device must allow: norms of queries and keys (Qwen3) are inputs of the kernel that writes the cache. */
function checkBindings({ gpu }: Device, { qkNorm }: DecoderConfig): void {
  const needed = qkNorm ? 9 : 8, allowed = gpu.limits.maxStorageBuffersPerShaderStage;
  if (allowed >= needed) return;
  throw new Error(
    `Cannot use this GPUDevice: it allows ${allowed} storage buffers a shader, and ${needed} are needed. Request it with ` +
      `requiredLimits: { maxStorageBuffersPerShaderStage: ${needed} }, or name a device instead.`,
  );
}

interface TextParts {
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  readonly generation: Awaited<ReturnType<typeof readGenerationConfig>>;
}

/** What deals with text; read while the weights come. */
async function loadText(source: Source): Promise<TextParts> {
  const [json, config, template, generation] = await Promise.all([
    readJson(source, "tokenizer.json"),
    readJson(source, "tokenizer_config.json"),
    source.readText("chat_template.jinja"),
    readGenerationConfig(source),
  ]);
  const tokenizer = json === undefined ? undefined : Tokenizer.fromJson(json, config ?? {});
  // The newer place for the template is a file of its own, and then it counts.
  const settings = { ...(config ?? {}), ...(template !== undefined && { chat_template: template }) };
  return { tokenizer, chatTemplate: ChatTemplate.fromConfig(settings), generation };
}

function loadProgress(total: number, { onProgress }: LoadOptions): (loaded: number) => void {
  const start = performance.now();
  return (received) => {
    const bytesPerSecond = 1000 * received / Math.max(1, performance.now() - start);
    const etaSeconds = Math.max(0, total - received) / bytesPerSecond;
    onProgress?.({ phase: "load", received: Math.min(received, total), total, bytesPerSecond, etaSeconds });
  };
}
