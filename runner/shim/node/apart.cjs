'use strict';
// Whose is it? For sandboxes that run several calls at once (`calls` in `init`); loaded only then. A call's asynchronous
// context, which everything that it starts inherits, tells its output from that of others. What has none (programs,
// `fs.writeSync(1, …)`, code of an ended call) goes the usual way, and then belongs to no call.

const { AsyncLocalStorage } = require('node:async_hooks');

/** A frame of output holds no more. */
const PIECE_BYTES = 64 * 1024;

class Apart {
  #storage = new AsyncLocalStorage();
  #isRunning;

  /** `isRunning(call)` says whether a call has not been answered; `say(call, data)` takes a piece of its output. */
  constructor(isRunning, say) {
    this.#isRunning = isRunning;
    for (const stream of [process.stdout, process.stderr]) {
      const write = stream.write.bind(stream);
      stream.write = (chunk, encoding, done) => {
        const call = this.owner();
        const isText = typeof chunk === 'string';
        if (!call || !isRunning(call) || !(isText || chunk instanceof Uint8Array)) {
          return write(chunk, encoding, done);
        }
        const data = isText ? Buffer.from(chunk, typeof encoding === 'string' ? encoding : 'utf8') : Buffer.from(chunk);
        for (let at = 0; at < data.length; at += PIECE_BYTES) {
          say(call, data.subarray(at, at + PIECE_BYTES));
        }
        const told = typeof encoding === 'function' ? encoding : done;
        if (told) {
          process.nextTick(told);
        }
        return true;
      };
    }
  }

  /** Run code as the call's. */
  run(call, code) {
    return this.#storage.run(call, code);
  }

  /** The call whose code this is; undefined when it is nobody's. */
  owner() {
    return this.#storage.getStore();
  }
}

module.exports = { Apart };
