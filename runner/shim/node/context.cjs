'use strict';
// The second argument of a handler.

const { stringify } = JSON;
/** What `progress` takes, as JSON text. */
const PROGRESS_BYTES = 4096;

/** Facts about the call that runs, for `async function handle(event, context)`. */
class Context {
  #deadline;
  #tell;

  /** `facts` are the function's name and version, `meta` is of the invoke frame, `tell` takes JSON text. */
  constructor(facts, meta, tell) {
    this.function = facts.function;
    this.version = facts.version;
    /** The same for every attempt of one job: use it to make side effects idempotent. */
    this.jobId = meta.job;
    /** Which attempt this is; it only ever grows for one job. */
    this.attempt = meta.attempt;
    /** W3C trace context that the job was submitted with, null without one. */
    this.traceparent = meta.traceparent ?? null;
    this.#deadline = performance.now() + meta.timeout_ms;
    this.#tell = tell;
  }

  /** Milliseconds until the sandbox is killed for being too slow; not below 0. */
  remainingMs() {
    return Math.max(0, this.#deadline - performance.now());
  }

  /**
   * Tell how far the call is, for everyone who looks at the job's record: any JSON of at most 4 KiB. Call it as often
   * as you like; the last value is always sent. After the call's answer nothing happens. Throws TypeError, RangeError.
   */
  progress(value) {
    const text = stringify(value);
    if (text === undefined) {
      throw new TypeError(`progress takes JSON, not a ${typeof value}`);
    }
    const bytes = Buffer.from(text);
    if (bytes.length > PROGRESS_BYTES) {
      throw new RangeError(
        `progress takes at most ${PROGRESS_BYTES} bytes of JSON, got ${bytes.length}; tell a summary, and keep the ` +
          'rest for the result',
      );
    }
    this.#tell(bytes);
  }
}

module.exports = { Context };
