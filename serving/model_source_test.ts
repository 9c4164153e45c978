import { assertEquals, assertRejects } from "@std/assert";
import { memorySource } from "../model/source.ts";
import { openNamed } from "./model_source.ts";

const STORIES = `${import.meta.dirname}/../model/assets/stories`;

Deno.test("a revision is refused where there are none", async () => {
  const options = { revision: "dev" };
  await assertRejects(
    () => openNamed(STORIES, options),
    Error,
    `Cannot load revision "dev" of "${STORIES}": only models`,
  );
  await assertRejects(() => openNamed(memorySource({}), options), Error, 'Cannot load revision "dev" of "memory"');
  await assertRejects(() => openNamed(undefined, options), Error, 'Cannot load revision "dev" of "the story model"');
  assertEquals((await openNamed(`${STORIES}/`, {})).name, STORIES);
});
