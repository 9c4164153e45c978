/**
 * Loading a model: its files, what deals with text, and an engine. Whatever fails, nothing stays behind.
 *
 * @module
 */
import { ChatTemplate } from "../model/chat_template.ts";
import { readGenerationConfig } from "../model/generation_config.ts";
import { readJson, type Source } from "../model/source.ts";
import { Tokenizer } from "../model/tokenizer.ts";
import type { Engine } from "./engine.ts";
import { type EngineLoadOptions, loadEngine } from "./load_engine.ts";
import { checkLoadOptions } from "./load_options.ts";
import { LoadedModel } from "./loaded_model.ts";
import type { LoadOptions, Model } from "./model.ts";
import { type NamedSource, openNamed } from "./model_source.ts";
import { type EngineThread, loadWorkerEngine, startEngineThread } from "./worker_engine.ts";

/**
 * Loads a model. Its engine gets a thread of its own, so that the caller's stays free; where the process may not read the script of
 * that thread (`--allow-read` of this package's files), or the device is one of the caller's, it works in the caller's thread.
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
  // A device cannot leave its thread.
  const thread = typeof options.device === "object" ? undefined : startEngineThread();
  try {
    const named = await openNamed(source, options);
    thread?.keepAlive(true);
    if (!await thread?.ready) return await load(named, options);
    return await loadIntoThread(thread!, named, options);
  } catch (cause) {
    await thread?.end();
    throw cause;
  }
}

/** Loads a model whose engine has a thread of its own. */
async function loadIntoThread(thread: EngineThread, named: NamedSource, options: LoadOptions): Promise<Model> {
  const text = loadText(named.source);
  text.catch(() => {}); // awaited below, unless something fails before
  const loaded = await loadWorkerEngine(thread, named, options);
  return new LoadedModel({ name: named.name, ...loaded, ...await text });
}

/** Loads a model whose engine lives in this thread, in sight. */
export async function load(named: NamedSource, options: EngineLoadOptions): Promise<LoadedModel<Engine>> {
  const text = loadText(named.source);
  text.catch(() => {}); // awaited below, unless something fails before
  const loaded = await loadEngine(named.source, options);
  try {
    return new LoadedModel({ name: named.name, ...loaded, ...await text });
  } catch (cause) {
    await loaded.engine.close(cause as Error);
    throw cause;
  }
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
