'use strict';
// What user code prints, on its way to the runner. Lives in the keeper, which holds one end of a socket pair whose
// other end is descriptors 1 and 2 of the worker: one stream for both, so that their order is that of writing.
//
// Output belongs to the call during which it was written: the keeper empties the socket before it passes an answer on,
// and drops what is in it when the next call begins. At most `cap` bytes of one call are sent; the rest is counted.

const { randomBytes } = require('node:crypto');
const { readSync } = require('node:fs');
const net = require('node:net');

const { encode, LOG } = require('./frames.cjs');

/** Unless `init` says another number. */
const CAP_BYTES = 256 * 1024;
/** More than a socket pair holds: what is there beyond was written after we began to look. */
const HELD_BYTES = 1024 * 1024;
const CHUNK_BYTES = 64 * 1024;
/** V8 prints its stack and a list of the last collections when its heap is full. */
const TAIL_BYTES = 8192;

/** Two connected stream sockets: `[ours, theirs]`. In the abstract name space, which belongs to the sandbox alone. */
function socketPair() {
  return new Promise((resolve, reject) => {
    const address = `\0bananas-${randomBytes(16).toString('hex')}`;
    const server = net.createServer({ pauseOnConnect: true }, (ours) => {
      server.close();
      resolve([ours, theirs]);
    });
    let theirs;
    server.on('error', reject);
    server.listen(address, () => {
      theirs = net.connect(address);
      theirs.on('error', reject);
    });
  });
}

/** Reads what is in a socket now, without waiting; `onData` gets Buffers of its own. */
function readAll(socket, onData) {
  for (let held; socket.readableLength > 0 && (held = socket.read()) !== null; ) {
    onData(held);
  }
  const fd = socket._handle ? socket._handle.fd : -1;
  for (let left = HELD_BYTES; fd >= 0 && left > 0; ) {
    const buffer = Buffer.allocUnsafe(CHUNK_BYTES);
    let count = 0;
    try {
      count = readSync(fd, buffer, 0, CHUNK_BYTES, null);
    } catch (e) {
      if (e.code !== 'EAGAIN' && e.code !== 'ECONNRESET') {
        throw e;
      }
    }
    if (count === 0) {
      return;
    }
    left -= count;
    onData(buffer.subarray(0, count));
  }
}

class Output {
  #socket;
  #send;
  #callId = 0n;
  #isCall = false;
  #cap = CAP_BYTES;
  #sent = 0;
  #dropped = 0;
  #tail = Buffer.alloc(0);

  /** `socket` is our end; `send` takes the bytes of one frame. */
  constructor(socket, send) {
    this.#socket = socket;
    this.#send = send;
    socket.on('data', (data) => this.take(data));
    socket.on('error', () => {}); // its end is not the sandbox's: that is the worker's
  }

  /** From now on output belongs to this call (0n: to loading the function). */
  begin(callId, cap = this.#cap) {
    this.#drain();
    this.#cap = cap;
    this.#sent = this.#dropped = 0;
    this.#callId = callId;
    this.#isCall = true;
  }

  /** Send all that the call has written; its answer comes next. */
  finish() {
    this.#drain();
    if (this.#dropped) {
      this.#send(encode(LOG, this.#callId, { truncated: true, dropped_bytes: this.#dropped }));
    }
    this.#isCall = false;
    this.#callId = 0n;
    this.#dropped = 0;
  }

  /** Send what is there now, before the answer of a call that is not the only one. */
  drain() {
    this.#drain();
  }

  /** After the worker's death: what it left, whether a call ran or not. */
  lastWords() {
    this.#isCall = true;
    this.finish();
  }

  /** The end of all output, whether it was sent or not. */
  get tail() {
    return this.#tail;
  }

  take(data) {
    this.#tail = Buffer.concat([this.#tail, data]).subarray(-TAIL_BYTES);
    if (!this.#isCall) {
      return; // written between two calls: it belongs to none
    }
    const kept = Math.min(data.length, this.#cap - this.#sent);
    this.#sent += kept;
    this.#dropped += data.length - kept;
    if (kept) {
      this.#send(encode(LOG, this.#callId, '{}', data.subarray(0, kept)));
    }
  }

  pause() {
    this.#socket.pause();
  }

  resume() {
    this.#socket.resume();
  }

  #drain() {
    readAll(this.#socket, (data) => this.take(data));
  }
}

module.exports = { Output, readAll, socketPair };
