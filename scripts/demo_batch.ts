/**
 * Continuous batching to look at: 16 prompts over 5 slots. A line of the terminal is a slot; as soon as a story ends, the next
 * prompt takes its place, while the others go on.
 *
 * @module
 */
import { BenchArguments, runBench } from "../bench/arguments.ts";
import { loadModel } from "../mod.ts";
import type { Model } from "../mod.ts";
import { Panel } from "../cli/progress.ts";
import { denoTerminal, type Terminal } from "../cli/terminal.ts";

const USAGE = "deno task demo:batch [MODEL]";

const SLOTS = 5;
/** Of different lengths, so that slots come free one by one. */
const maxTokens = (number: number): number => 30 + (number * 37) % 80;
const FRAME_MS = 50;

const WHO = ["a brave mouse", "a duck who cannot swim", "a lost kite", "two friends", "a little train", "a shy dragon"];
const WHERE = ["in the forest", "by the sea", "on a farm"];
const PROMPTS = WHO.flatMap((who) => WHERE.map((where) => `Tell me a story about ${who} ${where}`)).slice(0, 16);

/** Who is in which slot, and what has been written. */
class Slots {
  readonly #texts: (string | undefined)[] = Array(SLOTS).fill(undefined);
  readonly #numbers: number[] = Array(SLOTS).fill(0);

  /** Puts a request into the first free slot. */
  take(number: number): number {
    const slot = this.#texts.indexOf(undefined);
    this.#numbers[slot] = number;
    this.#texts[slot] = "";
    return slot;
  }

  write(slot: number, text: string): void {
    this.#texts[slot] += text.replace(/\s+/g, " ");
  }

  /** Frees a slot, and returns its text. */
  free(slot: number): string {
    const text = this.#texts[slot]!;
    this.#texts[slot] = undefined;
    return text;
  }

  /** A line a slot: the end of what has been written. */
  lines(width: number): string[] {
    return this.#texts.map((text, slot) => {
      if (text === undefined) return `slot ${slot + 1}`;
      const head = `slot ${slot + 1} ${`#${this.#numbers[slot]! + 1}`.padStart(4)}  `, room = width - head.length;
      return head + (text.length <= room ? text : `…${text.slice(1 - room)}`);
    });
  }
}

/** Answers one prompt in a slot of its own: it has one once the engine has begun. */
async function answer(model: Model, number: number, slots: Slots, over: (text: string) => void): Promise<number> {
  const messages = [{ role: "user", content: PROMPTS[number]! }];
  let slot: number | undefined, tokens = 0;
  for await (const chunk of model.generate({ messages, maxTokens: maxTokens(number), seed: number })) {
    slot ??= slots.take(number);
    slots.write(slot, chunk.text);
    tokens += chunk.tokens.length;
  }
  if (slot !== undefined) over(slots.free(slot));
  return tokens;
}

async function play(terminal: Terminal, model: Model): Promise<void> {
  const slots = new Slots(), { stdout, stderr } = terminal, start = performance.now();
  const panel = new Panel(terminal, (text) => text);
  let pending = Promise.resolve(), done = 0;
  const draw = (): void => {
    const { running, waiting, generatedTokensPerSecond: rate } = model.stats();
    const state = `${running} running · ${waiting} waiting · ${done} done · ${rate.toFixed(0)} tok/s`;
    panel.draw([...slots.lines(terminal.columns() - 1), state]);
  };
  const timer = stderr.isTerminal ? setInterval(draw, FRAME_MS) : undefined;
  // All at once: the engine has as many slots, and lets the others wait.
  const counts = await Promise.all(PROMPTS.map((prompt, number) =>
    answer(model, number, slots, (text) => {
      done++;
      // What is over scrolls away above the slots.
      pending = pending.then(() => panel[Symbol.asyncDispose]())
        .then(() => stdout.write(`#${number + 1} ${prompt}\n${text.trim()}\n\n`));
    })
  ));
  clearInterval(timer);
  await pending;
  await panel[Symbol.asyncDispose]();
  const tokens = counts.reduce((sum, count) => sum + count, 0), seconds = (performance.now() - start) / 1000;
  const rate = (tokens / seconds).toFixed(1);
  await stderr.write(
    `${PROMPTS.length} prompts over ${SLOTS} slots: ${tokens} tokens in ${seconds.toFixed(1)} s, ${rate} tok/s\n`,
  );
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args);
  flags.check(1);
  await using model = await loadModel(flags.words[0], { maxNumSeqs: SLOTS });
  await play(denoTerminal(), model);
}

if (import.meta.main) await runBench(USAGE, main);
