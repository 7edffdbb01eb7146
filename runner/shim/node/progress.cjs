'use strict';
// What handlers tell of their progress, on its way to the runner. Lives in the keeper, so that it moves on while user
// code holds the worker's event loop. One frame goes out at once, then at most one per GAP_MS, always with the latest
// value; before the answer, whatever is not sent yet.

const { encode, PROGRESS } = require('./frames.cjs');

const GAP_MS = 200;

class ProgressRelay {
  #send;
  #callId = 0n;
  #latest = null;
  #due = 0;
  #timer = null;

  /** `send` takes the bytes of one frame. */
  constructor(send) {
    this.#send = send;
  }

  /** From now on what is told belongs to this call. */
  begin(callId) {
    this.#callId = callId;
    this.#latest = null;
  }

  /** JSON text, as a Buffer. */
  tell(text) {
    this.#latest = text;
    const wait = this.#due - performance.now();
    if (wait <= 0) {
      this.#flush();
    } else if (this.#timer === null) {
      this.#timer = setTimeout(() => this.#flush(), wait);
    }
  }

  /** Send what is left of the call; its answer comes next. */
  finish() {
    this.#flush();
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#latest !== null) {
      this.#send(encode(PROGRESS, this.#callId, '{}', this.#latest));
      this.#latest = null;
      this.#due = performance.now() + GAP_MS;
    }
  }
}

module.exports = { ProgressRelay };
