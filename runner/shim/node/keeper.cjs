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

/** The keeper once the worker is there: states `stem`, `loading`, `idle`, `running`, and `failed`. */
class Keeper {
  #runner;
  #worker;
  #output;
  #progress;
  #state = 'stem';
  #callId = 0n;
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
      this.#refuse(`${who} sent nonsense: ${e.message}`, this.#state === 'running' ? this.#callId : 0n);
    }
  }

  #onRunnerFrame(frame) {
    if (frame.kind === frames.INIT && this.#state === 'stem') {
      this.#state = 'loading';
      this.#output.begin(0n, JSON.parse(frame.meta).log_bytes);
    } else if (frame.kind === frames.INVOKE && this.#state === 'idle') {
      this.#state = 'running';
      this.#callId = frame.callId;
      this.#output.begin(frame.callId);
      this.#progress.begin(frame.callId);
    } else {
      const what = { [frames.INIT]: 'a second init', [frames.INVOKE]: 'a call out of turn' }[frame.kind] || 'nonsense';
      this.#refuse(`the sandbox got ${what} (frame kind ${frame.kind}) and ends`, frame.callId);
      return;
    }
    this.#worker.orders.write(frame.raw);
  }

  /** A frame of the worker's, or one that user code forged: only what can come now is passed on. */
  #onWorkerFrame(frame) {
    const isOfCall = this.#state === 'running' && frame.callId === this.#callId;
    if (isOfCall && frame.kind === frames.PROGRESS) {
      this.#progress.tell(frame.body);
    } else if (isOfCall && (frame.kind === frames.RESULT || frame.kind === frames.ERROR)) {
      this.#state = 'idle';
      this.#progress.finish();
      this.#output.finish();
      this.#send(frame.raw);
    } else if (this.#state === 'loading' && (frame.kind === frames.READY || frame.kind === frames.ERROR)) {
      this.#state = frame.kind === frames.READY ? 'idle' : 'failed';
      this.#output.finish();
      this.#send(frame.raw);
    } else {
      throw new frames.ProtocolBreach(`frame kind ${frame.kind} of call ${frame.callId} while ${this.#state}`);
    }
  }

  /** A sandbox is bound once. Anything out of turn ends it, so that no call ever runs in the wrong function. */
  #refuse(message, callId) {
    const meta = { kind: 'protocol', type: 'ProtocolError', message: message.slice(0, 4096), reusable: false };
    this.#state = 'failed';
    this.#send(frames.encode(frames.ERROR, callId, meta));
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
    this.#progress.finish();
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
