'use strict';
// Start script of a Node sandbox: `node keeper.cjs [root]`, root being /run/bananas by default.
//
// The keeper: the parent process in a sandbox. No user code ever runs in it, so it still acts when user code hangs or
// crashes. It starts the worker, connects to the runner, and from then on passes frames on, in both directions:
//
// - the runner hangs up (its order to end, or its death): the worker is killed at once, whatever it is doing;
// - the worker is dead: its last output and how it ended go to the runner, and the sandbox is over;
// - a frame out of turn, from either side, ends the sandbox: what user code forges harms its own sandbox only.
//
// What a process of Node cannot do, and why this one relays: watch a connection for its end without reading from it.

const { spawn } = require('node:child_process');
const { readFileSync } = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

const frames = require('./frames.cjs');
const { Output, readAll, socketPair } = require('./output.cjs');
const { ProgressRelay } = require('./progress.cjs');

/** After sysexits.h: a bug of the shim, the other side broke the protocol, boot.json is of no use. */
const [SOFTWARE, PROTOCOL_ERROR, CONFIG] = [70, 76, 78];
/** The kernel may need a while to end a process that it has been told to kill. */
const KILL_TIMEOUT_MS = 5000;
/** The runner reads all the time; one that does not take the last words in this time does not want them. */
const SEND_TIMEOUT_MS = 2000;
/** Where the kernel counts what it killed for memory, with cgroups of version 2 and 1. */
const OOM_COUNTERS = ['/sys/fs/cgroup/memory.events', '/sys/fs/cgroup/memory/memory.oom_control'];
/** What V8 prints before it aborts because its heap is full. */
const HEAP_FULL = 'JavaScript heap out of memory';

/** Has the kernel killed anything in this sandbox for memory? It counts before it kills. */
function hasRunOutOfMemory() {
  for (const file of OOM_COUNTERS) {
    try {
      const count = /^oom_kill (\d+)$/m.exec(readFileSync(file, 'latin1'));
      if (count) {
        return count[1] !== '0';
      }
    } catch {
      // Of the other version, or hidden: then the engine is the only one to know.
    }
  }
  return false;
}

/** A call that runs; output that is told to be its own has a cap of its own. */
class Call {
  #callId;
  #send;
  #left;
  #dropped = 0;

  constructor(callId, progress, cap, send) {
    this.#callId = callId;
    this.progress = progress;
    this.#left = cap;
    this.#send = send;
    progress.begin(callId);
  }

  log(data) {
    const kept = data.subarray(0, this.#left);
    this.#left -= kept.length;
    this.#dropped += data.length - kept.length;
    if (kept.length) {
      this.#send(frames.encode(frames.LOG, this.#callId, '{}', kept));
    }
  }

  /** Everything that goes before its answer. */
  finish() {
    this.progress.finish();
    if (this.#dropped) {
      this.#send(frames.encode(frames.LOG, this.#callId, { truncated: true, dropped_bytes: this.#dropped }));
    }
  }
}

/** The keeper once the worker is there: states `stem`, `loading`, `ready`, and `failed`. */
class Keeper {
  #runner;
  #worker;
  #output;
  #progress;
  #state = 'stem';
  /** Those that run, by call id; how many may; what each may print if that is more than one. */
  #calls = new Map();
  #most = 1;
  #cap = 0;
  #isOrdered = false;
  #isOver = false;
  /** The worker's status and signal, once it has ended. */
  #ended = null;

  constructor(runner, worker, logs) {
    this.#runner = runner;
    this.#worker = worker;
    this.#output = new Output(logs, (frame) => this.#send(frame));
    this.#progress = new ProgressRelay((frame) => this.#send(frame));
  }

  get output() {
    return this.#output;
  }

  run() {
    const incoming = new frames.FrameReader((frame) => this.#onRunnerFrame(frame));
    const outgoing = new frames.FrameReader((frame) => this.#onWorkerFrame(frame));
    this.fromWorker = outgoing;
    this.#runner.on('data', (data) => this.#guarded(() => incoming.push(data), 'the runner'));
    this.#runner.on('drain', () => this.#resume());
    this.#runner.on('end', () => this.#onHangup());
    this.#runner.on('error', () => this.#onHangup());
    this.#worker.channel.on('data', (data) => this.#guarded(() => outgoing.push(data), 'the function'));
    this.#worker.channel.on('error', () => {}); // the worker's death, which is told apart
    this.#worker.orders.on('error', () => {});
    this.#worker.process.on('exit', (status, signal) => this.#onExit(status, signal));
    this.#resume();
    if (this.#worker.ended) {
      this.#onExit(...this.#worker.ended); // it was quicker than the connection
    }
  }

  #guarded(push, who) {
    try {
      if (!this.#isOver) {
        push();
      }
    } catch (e) {
      if (!(e instanceof frames.ProtocolBreach) && !(e instanceof SyntaxError)) {
        throw e;
      }
      this.#refuse(`${who} sent nonsense: ${e.message}`, ...this.#calls.keys());
    }
  }

  #onRunnerFrame(frame) {
    if (frame.kind === frames.INIT && this.#state === 'stem') {
      this.#state = 'loading';
      const meta = JSON.parse(frame.meta);
      this.#most = meta.calls || 1;
      this.#cap = meta.log_bytes;
      this.#output.begin(0n, this.#cap);
    } else if (frame.kind === frames.INVOKE && this.#state === 'ready' && this.#calls.size < this.#most) {
      this.#begin(frame.callId);
    } else {
      const what = { [frames.INIT]: 'a second init', [frames.INVOKE]: 'a call out of turn' }[frame.kind] || 'nonsense';
      this.#refuse(`the sandbox got ${what} (frame kind ${frame.kind}) and ends`, frame.callId);
      return;
    }
    this.#worker.orders.write(frame.raw);
  }

  /** Output that is not told to be a call's own belongs to the one that runs, or to call id 0 if several may. */
  #begin(callId) {
    const isShared = this.#most > 1;
    if (this.#calls.size === 0) {
      this.#output.begin(isShared ? 0n : callId);
    }
    const send = (bytes) => this.#send(bytes);
    const progress = isShared ? new ProgressRelay(send) : this.#progress;
    this.#calls.set(callId, new Call(callId, progress, this.#cap, send));
  }

  /** A frame of the worker's, or one that user code forged: only what can come now is passed on. */
  #onWorkerFrame(frame) {
    const call = this.#state === 'ready' ? this.#calls.get(frame.callId) : undefined;
    if (call && frame.kind === frames.PROGRESS) {
      call.progress.tell(frame.body);
    } else if (call && frame.kind === frames.LOG && this.#most > 1) {
      call.log(frame.body);
    } else if (call && (frame.kind === frames.RESULT || frame.kind === frames.ERROR)) {
      this.#calls.delete(frame.callId);
      call.finish();
      if (this.#calls.size === 0) {
        this.#output.finish();
      } else {
        this.#output.drain();
      }
      this.#send(frame.raw);
    } else if (this.#state === 'loading' && (frame.kind === frames.READY || frame.kind === frames.ERROR)) {
      this.#state = frame.kind === frames.READY ? 'ready' : 'failed';
      this.#output.finish();
      this.#send(frame.raw);
    } else {
      const doing = this.#calls.size ? 'running' : this.#state;
      throw new frames.ProtocolBreach(`frame kind ${frame.kind} of call ${frame.callId} while ${doing}`);
    }
  }

  /** A sandbox is bound once. Anything out of turn ends it, so that no call ever runs in the wrong function. */
  #refuse(message, ...callIds) {
    const meta = { kind: 'protocol', type: 'ProtocolError', message: message.slice(0, 4096), reusable: false };
    this.#state = 'failed';
    for (const callId of callIds.length ? callIds : [0n]) {
      this.#send(frames.encode(frames.ERROR, callId, meta));
    }
    this.#kill();
    this.#finish(PROTOCOL_ERROR, null, message);
  }

  #onHangup() {
    if (this.#isOver || this.#isOrdered) {
      return;
    }
    this.#isOrdered = this.#ended === null;
    this.#kill();
    setTimeout(() => this.#finish(null, null), KILL_TIMEOUT_MS);
  }

  /** The worker and all of its process group, which it leads. */
  #kill() {
    for (const pid of [-this.#worker.process.pid, this.#worker.process.pid]) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch (e) {
        if (e.code !== 'ESRCH') {
          throw e;
        }
      }
    }
  }

  #onExit(status, signal) {
    this.#ended = [status, signal];
    // What it had sent before its end counts, in that order: an answer, then the end.
    readAll(this.#worker.channel, (data) => this.#guarded(() => this.fromWorker.push(data), 'the function'));
    this.#finish(status, signal);
  }

  #finish(status, signal, reason) {
    if (this.#isOver) {
      return;
    }
    this.#isOver = true;
    this.#killGroup(); // what the worker started and left in its group
    for (const call of this.#calls.values()) {
      call.finish();
    }
    this.#output.lastWords();
    const number = signal === null ? null : os.constants.signals[signal];
    const meta = { status, signal: number };
    if (this.#isOrdered) {
      meta.ordered = true;
    } else if ((signal === 'SIGKILL' && hasRunOutOfMemory()) || (signal === 'SIGABRT' && this.#output.tail.includes(HEAP_FULL))) {
      meta.oom = true;
    }
    if (reason) {
      meta.reason = reason;
    }
    const code = status ?? (number === null ? SOFTWARE : 128 + number);
    setTimeout(() => process.exit(code), SEND_TIMEOUT_MS);
    this.#runner.on('error', () => process.exit(code));
    this.#runner.end(frames.encode(frames.EXIT, 0n, meta), () => process.exit(code));
  }

  #killGroup() {
    try {
      process.kill(-this.#worker.process.pid, 'SIGKILL');
    } catch {
      // Nobody is left in it.
    }
  }

  /** What the runner does not take yet is bounded: nothing more is read from the worker meanwhile. */
  #send(frame) {
    if (!this.#runner.destroyed && !this.#runner.write(frame)) {
      this.#worker.channel.pause();
      this.#output.pause();
    }
  }

  #resume() {
    this.#worker.channel.resume();
    this.#output.resume();
  }
}

/** Start the worker; resolves when it can take `init`, or has ended. */
async function startWorker(root, theirs) {
  const child = spawn(process.execPath, [path.join(__dirname, 'worker.cjs'), root], {
    stdio: ['ignore', theirs, theirs, 'pipe', 'pipe'],
    detached: true, // leader of a process group of its own
  });
  theirs.destroy();
  const [, , , orders, channel] = child.stdio;
  const worker = { process: child, orders, channel, ended: null };
  await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (...ended) => {
      worker.ended = ended;
      resolve();
    });
    const reader = new frames.FrameReader(({ kind }) => kind === frames.UP && resolve());
    channel.on('data', (data) => reader.push(data));
  });
  channel.pause();
  channel.removeAllListeners('data');
  return worker;
}

async function main(root) {
  const boot = JSON.parse(readFileSync(path.join(root, 'boot.json'), 'utf8'));
  let reason = boot.protocol === frames.PROTOCOL ? '' : `boot.json has protocol ${boot.protocol}, not 1`;
  let tell = () => {};
  if (boot.egress.length && !reason) {
    const { listen } = require('./forwarder.cjs');
    const say = (text) => tell(text);
    reason = await listen(path.join(root, 'e'), boot.egress, boot.egress_connections, say).catch((e) => e.message);
  }
  const [ours, theirs] = await socketPair();
  const worker = reason ? null : await startWorker(root, theirs);
  // Connecting tells the runner that the sandbox is ready, so it comes last.
  const runner = net.connect({ path: path.join(root, 's'), allowHalfOpen: true });
  await new Promise((resolve, reject) => runner.once('connect', resolve).once('error', reject));
  runner.removeAllListeners('error');
  if (reason) {
    const exit = frames.encode(frames.EXIT, 0n, { status: CONFIG, signal: null, reason: `egress: ${reason}` });
    runner.end(exit, () => process.exit(CONFIG));
    return;
  }
  const keeper = new Keeper(runner, worker, ours);
  tell = (text) => keeper.output.take(Buffer.from(`bananas: ${text}\n`));
  keeper.run();
}

main(process.argv[2] || '/run/bananas').catch((e) => {
  process.stderr.write(`bananas: ${e.stack}\n`);
  process.exit(SOFTWARE);
});
