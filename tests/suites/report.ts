/** What a suite of recorded cases tells while it runs. */

/** A case that did not pass, or was left out. */
export interface Remark {
  name: string;
  why: string;
}

/** Collects the outcome of every case of a suite. */
export class Report {
  passed = 0;
  readonly failures: Remark[] = [];
  readonly skipped: Remark[] = [];

  /** The case gave what was recorded. */
  pass(_name: string): void {
    this.passed++;
  }

  /** The case gave something else, or threw. */
  fail(name: string, why: string): void {
    this.failures.push({ name, why });
  }

  /** The case was left out for a reason that is known. Reasons are counted by their text: name no case in it. */
  skip(name: string, why: string): void {
    this.skipped.push({ name, why });
  }
}
