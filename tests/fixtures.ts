/**
 * Runs the recorded cases: `deno run -A tests/fixtures.ts [suite…]`. The folder that TINYLLM_FIXTURES names (by default
 * `tests/fixtures/`) holds a folder for each suite, and in it whatever cases there are; none is named here.
 */
import { run as mlx } from "./suites/mlx.ts";
import { run as models } from "./suites/models.ts";
import { run as ops } from "./suites/ops.ts";
import { Report } from "./suites/report.ts";
import { run as stories } from "./suites/stories.ts";
import { run as tokenizer } from "./suites/tokenizer.ts";

/** Runs the cases of a folder. */
type Suite = (folder: string, report: Report) => Promise<void>;

const SUITES: Readonly<Record<string, Suite>> = { models, mlx, ops, tokenizer, stories };

/** How many failures of a suite are printed in full. */
const SHOWN_FAILURES = 20;
const SHOWN_CHARACTERS = 600;

/** Runs one suite. Whatever it throws is a failure of its own. */
async function runSuite(suite: string, folder: string): Promise<Report> {
  const report = new Report();
  try {
    await SUITES[suite]!(`${folder}/${suite}`, report);
    if (report.passed + report.failures.length + report.skipped.length === 0) {
      report.fail(suite, `no case found in "${folder}/${suite}"`);
    }
  } catch (error) {
    report.fail(suite, error instanceof Error ? error.stack ?? error.message : String(error));
  }
  return report;
}

/** Such as `models: 6 of 6, 2 skipped (qwen2_moe: qwen2-moe-tiny; qwen3_moe: qwen3-moe-tiny)`. */
function summarise(suite: string, report: Report): string {
  const line = `${suite}: ${report.passed} of ${report.passed + report.failures.length}`;
  if (report.skipped.length === 0) return line;
  const reasons = Map.groupBy(report.skipped, ({ why }) => why);
  const groups = Array.from(reasons, ([why, cases]) => `${why}: ${cases.map(({ name }) => name).join(", ")}`);
  return `${line}, ${report.skipped.length} skipped (${groups.join("; ")})`;
}

function printFailures(report: Report): void {
  for (const { name, why } of report.failures.slice(0, SHOWN_FAILURES)) {
    console.log(`  FAILED ${name}: ${why.length > SHOWN_CHARACTERS ? `${why.slice(0, SHOWN_CHARACTERS)} …` : why}`);
  }
  const hidden = report.failures.length - SHOWN_FAILURES;
  if (hidden > 0) console.log(`  and ${hidden} more`);
}

async function main(wanted: string[]): Promise<number> {
  const unknown = wanted.find((suite) => !Object.hasOwn(SUITES, suite));
  if (unknown !== undefined) {
    console.error(`There is no suite "${unknown}": choose from ${Object.keys(SUITES).join(", ")}`);
    return 2;
  }
  const folder = Deno.env.get("TINYLLM_FIXTURES") || `${import.meta.dirname}/fixtures`;
  let passed = 0;
  let failed = 0;
  for (const suite of wanted.length > 0 ? wanted : Object.keys(SUITES)) {
    const report = await runSuite(suite, folder);
    console.log(summarise(suite, report));
    printFailures(report);
    passed += report.passed;
    failed += report.failures.length;
  }
  console.log(`${passed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

Deno.exit(await main(Deno.args));
