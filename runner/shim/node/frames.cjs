'use strict';
// Frames, as the shim for Node reads and writes them; the format is that of `runner/framing.py`. Used by the keeper on
// the runner's connection and on the worker's channel, and by the worker.

const PROTOCOL = 1;
const [INIT, READY, INVOKE, RESULT, ERROR, LOG, EXIT, PROGRESS] = [1, 2, 3, 4, 5, 6, 7, 8];
/** Between worker and keeper only: the worker is ready to take `init`. */
const UP = 0;
const FRAME_BYTES = 4 * 1024 * 1024;

// length 4, kind 1, call id 8, meta length 4; the length does not count itself.
const HEAD_BYTES = 17;
const LENGTH_BYTES = 4;
const NOTHING = Buffer.alloc(0);

/** The other side sent something that is not allowed. */
class ProtocolBreach extends Error {}

/** The bytes of one frame. `callId` is a BigInt, `meta` a plain object or the text of one, `body` a Buffer. */
function encode(kind, callId, meta, body = NOTHING) {
  const text = Buffer.from(typeof meta === 'string' ? meta : JSON.stringify(meta));
  const frame = Buffer.allocUnsafe(HEAD_BYTES + text.length + body.length);
  frame.writeUInt32BE(frame.length - LENGTH_BYTES, 0);
  frame.writeUInt8(kind, 4);
  frame.writeBigUInt64BE(callId, 5);
  frame.writeUInt32BE(text.length, 13);
  text.copy(frame, HEAD_BYTES);
  body.copy(frame, HEAD_BYTES + text.length);
  return frame;
}

/** Cuts a stream into frames: `push` takes what came and calls back for each whole one. */
class FrameReader {
  #onFrame;
  #chunks = [];
  #size = 0;
  #needed = HEAD_BYTES;

  /** `onFrame` gets `{kind, callId, meta, body, raw}`; meta, body and raw are Buffers that nobody else writes to. */
  constructor(onFrame) {
    this.#onFrame = onFrame;
  }

  /** Throws ProtocolBreach when the next frame is too long or its lengths contradict each other. */
  push(chunk) {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    while (this.#size >= this.#needed) {
      const data = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
      this.#chunks = [data];
      const total = data.readUInt32BE(0) + LENGTH_BYTES;
      const metaEnd = HEAD_BYTES + data.readUInt32BE(13);
      if (total > FRAME_BYTES || total < HEAD_BYTES || metaEnd > total) {
        throw new ProtocolBreach(`a frame of ${total} bytes with meta up to ${metaEnd}; the limit is ${FRAME_BYTES}`);
      }
      if (this.#size < total) {
        this.#needed = total;
        return;
      }
      this.#needed = HEAD_BYTES;
      this.#size -= total;
      this.#chunks = this.#size ? [data.subarray(total)] : [];
      const raw = data.subarray(0, total);
      this.#onFrame({
        kind: raw[4],
        callId: raw.readBigUInt64BE(5),
        meta: raw.subarray(HEAD_BYTES, metaEnd),
        body: raw.subarray(metaEnd),
        raw,
      });
    }
  }
}

module.exports = {
  ...{ PROTOCOL, INIT, READY, INVOKE, RESULT, ERROR, LOG, EXIT, PROGRESS, UP, FRAME_BYTES },
  ...{ ProtocolBreach, FrameReader, encode },
};
