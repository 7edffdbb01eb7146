'use strict';
// The worker: the process that loads and runs user code. Started by keeper.cjs before there is any.
//
// It answers one `init` and then one `invoke` after the other, or several at once (`apart.cjs`). What user code throws,
// also where nobody awaits it, is the answer of the call that runs; what it does to the process (`process.exit`, a crash) ends the worker, and the
// keeper reports that. Frames come in on descriptor 3 and go out on 4, which blocks: what is told has left.

const { existsSync, readdirSync, writeFileSync, writeSync } = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { pathToFileURL } = require('node:url');

const frames = require('./frames.cjs');
const { Context } = require('./context.cjs');
const { Leftovers } = require('./leftovers.cjs');
const { describe } = require('./report.cjs');

// User code may put its own in their place.
const { stringify, parse } = JSON;

const [ORDERS_FD, CHANNEL_FD] = [3, 4];
const SECRETS = '/run/secrets';
const SUFFIXES = ['.js', '.mjs', '.cjs'];
/** Exit status of a worker that lost the keeper (EX_IOERR). */
const STATUS_IO = 74;
/** In a sandbox that runs out of memory the kernel shall end user code, not the keeper that reports it. */
const OOM_SCORE = '500';
/** What a handler tells more often than this goes nowhere but the last of it. */
const TELL_GAP_MS = 5;

/** The handler's answer cannot be sent; `type` is the error's type for the client. */
class Refused extends Error {
  constructor(type, message) {
    super(message);
    this.type = type;
  }
}

function send(kind, callId, meta, body) {
  const data = frames.encode(kind, callId, meta, body);
  for (let sent = 0; sent < data.length; ) {
    sent += writeSync(CHANNEL_FD, data, sent);
  }
}

/** State of one sandbox: unbound, then bound to one function for the rest of its life. */
class Worker {
  #root;
  #leftovers = new Leftovers(process.pid, process.ppid);
  #handler = null;
  #facts = null;
  #resultBytes = 0;
  /** What runs: call id → `{callId, began, fail, why, told}`. */
  #calls = new Map();
  /** Ends the loading of the code with an error, while that goes on. */
  #failLoading = null;
  /** Why the sandbox must not be used again. */
  #trouble = '';
  /** Tells calls apart that run at once; null if they do not. */
  #apart = null;
  #tellDue = 0;

  constructor(root) {
    this.#root = root;
  }

  /** Frames are the keeper's, which has checked that they come in turn. */
  take({ kind, callId, meta, body }) {
    const read = kind === frames.INIT ? this.#init(parse(meta), body) : this.#invoke(callId, parse(meta), body);
    read.catch((e) => setImmediate(() => { throw e; })); // a bug of ours: the process ends
  }

  /** What nobody caught: of the call that runs, of loading, or of neither, as usual the end of the process. */
  onUncaught(error) {
    if (process.listenerCount('uncaughtException') > 1) {
      return; // user code has its own way
    }
    if (this.#failLoading) {
      this.#failLoading(error);
      return;
    }
    const owner = this.#apart?.owner();
    if (this.#calls.size === 0) {
      console.error(error);
      process.exit(1);
    }
    const why = 'left an error uncaught, in code that the handler does not await';
    if (owner && !this.#isRunning(owner)) {
      console.error(error); // of a call that is over: no fault of those that run, but it must not go on so
      this.#trouble ||= why;
      return;
    }
    // Without an owner it may be any of them, as with a crash.
    for (const call of owner ? [owner] : [...this.#calls.values()]) {
      call.fail(error, why);
    }
  }

  #isRunning(call) {
    return this.#calls.get(call.callId) === call;
  }

  async #init(meta, secrets) {
    const began = performance.now();
    const where = 'while it was loaded';
    try {
      await new Promise((resolve, reject) => {
        this.#failLoading = reject;
        this.#load(meta, secrets).then(resolve, reject);
      });
    } catch (e) {
      send(frames.ERROR, 0n, { kind: 'init', ...describe(e, where) });
      return;
    } finally {
      this.#failLoading = null;
    }
    send(frames.READY, 0n, { node: process.versions.node, init_ms: since(began) });
  }

  async #load(meta, secrets) {
    if (meta.protocol !== frames.PROTOCOL) {
      throw new Error(`the runner speaks protocol ${meta.protocol}, the sandbox ${frames.PROTOCOL}`);
    }
    this.#facts = { function: meta.function, version: meta.version };
    this.#resultBytes = meta.result_bytes;
    Object.assign(process.env, meta.env);
    process.chdir(path.join(this.#root, 'code'));
    keepSecrets(secrets);
    if (meta.calls > 1) {
      const { Apart } = require('./apart.cjs');
      const say = (call, data) => send(frames.LOG, call.callId, '{}', data);
      this.#apart = new Apart((call) => this.#isRunning(call), say);
    }
    this.#handler = await load(path.join(this.#root, 'code'), meta.handler);
  }

  async #invoke(callId, meta, payload) {
    const running = { callId, began: performance.now(), fail: null, why: '', told: { latest: null, timer: null } };
    this.#calls.set(callId, running);
    const tell = (value) => this.#isRunning(running) && this.#tell(running, value);
    const context = new Context(this.#facts, meta, tell);
    const handle = () => this.#handler(parse(payload), context);
    let answer;
    try {
      const result = await new Promise((resolve, reject) => {
        running.fail = (error, why) => {
          running.why = why;
          reject(error);
        };
        // Not resolve(promise), which would lock `fail` out.
        Promise.resolve(this.#apart ? this.#apart.run(running, handle) : handle()).then(resolve, reject);
      });
      answer = [frames.RESULT, {}, this.#encode(result)];
    } catch (e) {
      answer = [frames.ERROR, { kind: 'handler', ...describe(e, 'in the handler') }];
      running.why ||= isOutOfMemory(e) ? 'ran out of memory' : '';
    }
    const [kind, more, body] = answer;
    this.#finishTelling(running);
    this.#calls.delete(callId);
    // Children are nobody's while other calls run; the last one is asked.
    this.#trouble ||= running.why || (this.#calls.size === 0 ? this.#leftovers.trouble() : '');
    const verdict = this.#trouble ? { reusable: false, why_not: this.#trouble } : {};
    send(kind, callId, { ...more, run_ms: since(running.began), ...verdict }, body);
  }

  /** JSON text of the handler's result; throws Refused. */
  #encode(result) {
    let text;
    try {
      text = stringify(result === undefined ? null : result);
      // NaN and infinities become null, so only a text with a null can hide one.
      if (text !== undefined && text.includes('null')) {
        stringify(result, refuseNumbers);
      }
    } catch (e) {
      throw new Refused('ResultNotJson', `${this.#facts.function} returned what is not JSON (${describe(e, '').message})`);
    }
    if (text === undefined) {
      throw new Refused('ResultNotJson', `${this.#facts.function} returned a ${typeof result}, which is not JSON`);
    }
    const body = Buffer.from(text);
    if (body.length > this.#resultBytes) {
      throw new Refused(
        'ResultTooLarge',
        `${this.#facts.function} returned ${body.length} bytes of JSON, the limit is ${this.#resultBytes}; ` +
          'store large results elsewhere and return where they are',
      );
    }
    return body;
  }

  #tell(call, text) {
    call.told.latest = text;
    const wait = this.#tellDue - performance.now();
    if (wait <= 0) {
      this.#finishTelling(call);
    } else if (call.told.timer === null) {
      call.told.timer = setTimeout(() => this.#finishTelling(call), wait).unref();
    }
  }

  #finishTelling({ callId, told }) {
    clearTimeout(told.timer);
    told.timer = null;
    if (told.latest !== null) {
      send(frames.PROGRESS, callId, '{}', told.latest);
      told.latest = null;
      this.#tellDue = performance.now() + TELL_GAP_MS;
    }
  }
}

function refuseNumbers(_, value) {
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new RangeError(`${value} is not JSON`);
  }
  return value;
}

function isOutOfMemory(error) {
  return error instanceof RangeError && /allocation failed/i.test(describe(error, '').message);
}

function since(began) {
  return Math.round((performance.now() - began) * 1000) / 1000;
}

/** Secrets become files that only this user may read, on a file system in memory. */
function keepSecrets(body) {
  for (const [name, text] of Object.entries(body.length ? parse(body) : {})) {
    writeFileSync(path.join(SECRETS, name), Buffer.from(text, 'base64'), { flag: 'wx', mode: 0o400 });
  }
}

/** The function that `folder.module.name` means: an export of `folder/module.js`, `.mjs` or `.cjs`. */
async function load(code, handler) {
  const parts = handler.split('.');
  const name = parts.pop();
  const stem = path.join(code, ...parts);
  const file = SUFFIXES.map((suffix) => stem + suffix).find(existsSync);
  if (!file) {
    const looked = SUFFIXES.map((suffix) => parts.join('/') + suffix).join(', ');
    throw new Error(`the handler is ${handler}, but the folder has none of ${looked}; it has ${listing(code)}`);
  }
  process.argv = [process.execPath, file];
  const module = await import(pathToFileURL(file));
  const inner = module.default;
  const found = module[name] ?? (inner === null || inner === undefined ? undefined : inner[name]);
  if (found === undefined) {
    throw new Error(`the handler is ${handler}, but ${path.basename(file)} exports no ${name}`);
  }
  if (typeof found !== 'function') {
    throw new TypeError(`the handler ${handler} is of type ${typeof found}, not a function`);
  }
  return found;
}

function listing(folder) {
  const names = readdirSync(folder).sort();
  return names.slice(0, 20).join(', ') + (names.length > 20 ? ', …' : '') || 'no files';
}

/** Standard output and error block, so that what was printed before a crash is not lost. */
function settleIn() {
  for (const stream of [process.stdout, process.stderr]) {
    if (stream._handle && stream._handle.setBlocking) {
      stream._handle.setBlocking(true);
    }
  }
  try {
    writeFileSync('/proc/self/oom_score_adj', OOM_SCORE);
  } catch {
    // No such file in this kind of sandbox: the engine's own OOM report has to do.
  }
}

function main(root) {
  settleIn();
  const worker = new Worker(root);
  process.on('uncaughtException', (error) => worker.onUncaught(error));
  const reader = new frames.FrameReader((frame) => worker.take(frame));
  const orders = new net.Socket({ fd: ORDERS_FD, readable: true, writable: false });
  orders.on('data', (data) => reader.push(data));
  orders.on('error', () => process.exit(STATUS_IO));
  orders.on('end', () => process.exit(STATUS_IO));
  send(frames.UP, 0n, '{}');
}

main(process.argv[2]);
