import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { parseConfig, readConfig, UnsupportedModelError } from "./config.ts";
import { parseGenerationConfig, readGenerationConfig } from "./generation_config.ts";
import { memorySource } from "./source.ts";

const QWEN2 = {
  model_type: "qwen2",
  hidden_size: 128,
  intermediate_size: 344,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 1003,
  hidden_act: "silu",
  max_position_embeddings: 512,
  rms_norm_eps: 1e-6,
  rope_theta: 1e6,
  tie_word_embeddings: true,
  eos_token_id: 1000,
  bos_token_id: 1001,
  torch_dtype: "float32",
  sliding_window: 24,
  use_sliding_window: false,
};

Deno.test("qwen2: all fields", () => {
  assertEquals(parseConfig(QWEN2), {
    modelType: "qwen2",
    hiddenSize: 128,
    intermediateSize: 344,
    numLayers: 3,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 32,
    vocabSize: 1003,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: true,
    maxPositionEmbeddings: 512,
    contextLength: 512,
    attentionBias: true,
    attentionOutputBias: false,
    mlpBias: false,
    qkNorm: false,
    rope: { kind: "default", theta: 1e6, rotaryDim: 32 },
    eosTokenIds: [1000],
    bosTokenId: 1001,
  });
});

Deno.test("qwen3 and llama: head_dim, biases, head norms, nulls, lists of ids", () => {
  const qwen3 = parseConfig({ ...QWEN2, model_type: "qwen3", head_dim: 64, eos_token_id: [3, 4], bos_token_id: null });
  assertEquals([qwen3.headDim, qwen3.qkNorm, qwen3.attentionBias, qwen3.eosTokenIds], [64, true, false, [3, 4]]);
  assertEquals("bosTokenId" in qwen3, false);
  const llama = parseConfig({ ...QWEN2, model_type: "llama", attention_bias: true, num_key_value_heads: null });
  assertEquals([llama.numKvHeads, llama.attentionBias, llama.attentionOutputBias, llama.qkNorm], [
    4,
    true,
    true,
    false,
  ]);
  assertEquals(parseConfig({ ...QWEN2, tie_word_embeddings: null }).tieWordEmbeddings, false);
});

Deno.test("rope: both spellings mean the same", () => {
  const yarn = { factor: 4, original_max_position_embeddings: 512 };
  const { rope_theta: theta, ...rest } = QWEN2;
  const configs = [
    { ...QWEN2, rope_scaling: { type: "yarn", ...yarn } },
    { ...QWEN2, rope_scaling: { rope_type: "yarn", ...yarn, attention_factor: null } },
    { ...rest, rope_parameters: { rope_type: "yarn", rope_theta: theta, ...yarn } },
  ];
  for (const config of configs) {
    const { rope, contextLength } = parseConfig(config);
    assertEquals(rope, {
      kind: "yarn",
      theta: 1e6,
      rotaryDim: 32,
      factor: 4,
      originalMaxPositionEmbeddings: 512,
      betaFast: 32,
      betaSlow: 1,
      truncate: true,
    });
    assertEquals(contextLength, 2048);
  }
});

Deno.test("rope: llama3, linear, partial, unknown", () => {
  const llama3 = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const complete = { ...llama3, original_max_position_embeddings: 64 };
  assertEquals(parseConfig({ ...QWEN2, rope_scaling: complete }).rope, {
    kind: "llama3",
    theta: 1e6,
    rotaryDim: 32,
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 64,
  });
  const linear = { ...QWEN2, rope_scaling: { type: "linear", factor: 2 }, partial_rotary_factor: 0.5 };
  assertEquals(parseConfig(linear).rope, { kind: "linear", theta: 1e6, rotaryDim: 16, factor: 2 });
  const refuse = (rope_scaling: unknown, message: string) =>
    assertThrows(() => parseConfig({ ...QWEN2, rope_scaling }), Error, message);
  refuse(llama3, "original_max_position_embeddings");
  refuse({ ...complete, high_freq_factor: 1 }, "high_freq_factor 1 is not above");
  refuse({ type: "longrope" }, 'kind "longrope"; supported are default, linear, yarn, llama3');
  refuse({ type: "linear", factor: -1 }, "factor");
});

Deno.test("what is not supported says so", () => {
  const refuse = (change: Record<string, unknown>, message: string) => {
    const error = assertThrows(() => parseConfig({ ...QWEN2, ...change }), UnsupportedModelError, message);
    assertEquals(error.modelType, (change.model_type as string | undefined) ?? "qwen2");
  };
  refuse({ model_type: "qwen2_moe" }, "not supported yet");
  refuse({ model_type: "qwen3_moe" }, "not supported yet");
  refuse({ model_type: "gpt2" }, "supported are qwen2, qwen3, llama");
  refuse({ model_type: "constructor" }, "supported are");
  refuse({ hidden_act: "gelu" }, 'its activation is "gelu"');
  refuse({ quantization_config: { quant_method: "awq", bits: 4 } }, 'weights quantised by "awq"');
  refuse({ quantization: { group_size: 32, bits: 4, mode: "mxfp4" } }, 'MLX mode "mxfp4"');
  refuse({ use_sliding_window: true, max_window_layers: 1 }, "2 of its layers attend in a sliding window of 24");
});

Deno.test("a sliding window that no layer uses is none", () => {
  for (
    const change of [
      { max_window_layers: 3 },
      { max_window_layers: 0, sliding_window: 512 },
      { layer_types: ["full_attention", "full_attention", "full_attention"], max_window_layers: 0 },
      { sliding_window: null },
    ]
  ) parseConfig({ ...QWEN2, use_sliding_window: true, ...change });
});

Deno.test("senseless configs name the field and its value", () => {
  const refuse = (change: Record<string, unknown>, message: string) =>
    assertThrows(() => parseConfig({ ...QWEN2, ...change }), Error, message);
  refuse({ hidden_size: -3 }, "Cannot load config.json: hidden_size is -3");
  refuse({ vocab_size: undefined }, "vocab_size is absent");
  refuse({ vocab_size: 1e12 }, "vocab_size is 1000000000000");
  refuse({ num_hidden_layers: "3" }, 'num_hidden_layers is "3"');
  refuse({ num_key_value_heads: 3 }, "4 attention heads cannot share 3 key and value heads");
  refuse({ num_attention_heads: 6 }, "head_dim is 21.33");
  refuse({ head_dim: 15 }, "head_dim is 15");
  refuse({ model_type: undefined }, "model_type is absent");
  refuse({ quantization_config: { bits: 4 } }, "no quant_method");
  assertThrows(() => parseConfig([]), Error, "Cannot load config.json");
});

Deno.test("reading from a source", async () => {
  const source = memorySource({ "config.json": JSON.stringify(QWEN2) });
  assertEquals((await readConfig(source)).hiddenSize, 128);
  await assertRejects(() => readConfig(memorySource({})), Error, "it has no config.json");
});

Deno.test("generation config: all fields, non-finite numbers, nulls, nothing", async () => {
  assertEquals(
    parseGenerationConfig({
      temperature: { __float__: "Infinity" },
      top_k: 20,
      top_p: 0.8,
      min_p: 0.05,
      repetition_penalty: 1.1,
      eos_token_id: [5, 6],
      max_new_tokens: 400,
      do_sample: true,
      bos_token_id: null,
    }),
    {
      temperature: Infinity,
      topK: 20,
      topP: 0.8,
      minP: 0.05,
      repetitionPenalty: 1.1,
      eosTokenIds: [5, 6],
      maxNewTokens: 400,
      doSample: true,
    },
  );
  assertEquals(await readGenerationConfig(memorySource({})), { eosTokenIds: [] });
  assertThrows(
    () => parseGenerationConfig({ top_p: 2 }),
    Error,
    "generation_config.json: top_p is 2: expected a number",
  );
  assertThrows(() => parseGenerationConfig({ eos_token_id: -1 }), Error, "eos_token_id is -1");
});
