'use strict';
// Lets user code reach the addresses in `egress` though the sandbox has no network. Lives in the keeper.
//
// The names resolve to loopback addresses inside the sandbox, and this listens there. For each connection it asks the
// runner's relay, through the socket `e`, for the target that belongs to the address, and then passes bytes both ways.
// What may be reached is decided by the relay alone; user code that talks to `e` itself gains nothing.

const { existsSync, readFileSync } = require('node:fs');
const net = require('node:net');

/** Unless boot.json says another number. */
const MAX_CONNECTIONS = 32;
/** Clients that wait while the most are connected; one more would have to knock again a second later. */
const BACKLOG = 128;
const REPLY_BYTES = 512;
/** Of a piece's length, which comes before it. */
const LENGTH_BYTES = 4;
/** The relay takes at most 15 s and some for resolving; this is for a relay that died. */
const REPLY_TIMEOUT_MS = 30_000;
/** For code to read what came before a cut. There is no event for that, so we look. */
const READ_TIMEOUT_MS = 10_000;
const LOOK_MS = 10;
const NOTHING = Buffer.alloc(0);

/** Rooms for connections; who finds none waits for one. */
class Rooms {
  #free;
  #waiting = [];

  constructor(count) {
    this.#free = count;
  }

  enter(start) {
    if (this.#free > 0) {
      this.#free -= 1;
      start();
    } else {
      this.#waiting.push(start);
    }
  }

  leave() {
    const next = this.#waiting.shift();
    if (next) {
      next();
    } else {
      this.#free += 1;
    }
  }
}

/** Listen at `ip:port` of each route; rejects with what is wrong. `tell` takes a line for the running call's output. */
async function listen(relayPath, routes, maxConnections, tell) {
  const rooms = new Rooms(maxConnections || MAX_CONNECTIONS);
  for (const route of routes) {
    const target = `${route.name}:${route.port}`;
    // Nothing is read before there is room and the relay has agreed.
    const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (client) => {
      client.on('error', () => {}); // it may break while it waits; then asking the relay is soon over
      rooms.enter(() => connect(client, relayPath, target, tell).finally(() => rooms.leave()));
    });
    await new Promise((resolve, reject) => {
      server.once('error', (e) => reject(new Error(`cannot listen on ${route.ip}:${route.port}: ${e.message}`)));
      server.listen({ host: route.ip, port: route.port, backlog: BACKLOG }, resolve);
    });
  }
}

/** One client inside the sandbox and its counterpart at the relay: first ask, then pass bytes; resolves at the end. */
function connect(client, relayPath, target, tell) {
  return new Promise((resolve) => {
    if (client.destroyed) {
      resolve();
      return;
    }
    const relay = net.connect({ path: relayPath, allowHalfOpen: true });
    let isOpen = false;
    let isOver = false;
    const end = (problem, isCut = Boolean(problem)) => {
      if (isOver) {
        return;
      }
      isOver = true;
      clearTimeout(timer);
      if (problem) {
        // Before the close, which may wake user code and end the call that the text belongs to.
        tell(`egress to ${target}: ${problem}`);
      }
      relay.destroy();
      if (isCut) {
        breakOff(client, resolve);
      } else {
        client.destroy();
        resolve();
      }
    };
    const timer = setTimeout(() => end("the runner's relay does not answer"), REPLY_TIMEOUT_MS);
    relay.on('error', (e) => {
      const what = relay.pending ? 'cannot be reached' : 'broke the connection';
      end(isOpen ? '' : `the runner's relay ${what}: ${e.code}`, true);
    });
    client.on('error', () => end('', true));
    ask(relay, target, (problem, rest) => {
      if (isOver || problem) {
        end(problem);
        return;
      }
      clearTimeout(timer);
      isOpen = true;
      passOn(client, relay, rest, end);
    });
  });
}

/** Send the request and read the relay's line; calls back with what is wrong and with what came after the line. */
function ask(relay, target, done) {
  let got = NOTHING;
  const onData = (data) => {
    got = Buffer.concat([got, data]);
    const newline = got.indexOf('\n');
    if (newline < 0 && got.length <= REPLY_BYTES) {
      return;
    }
    finish(newline < 0 ? "the runner's relay gave no answer" : refusal(got.subarray(0, newline).toString()));
  };
  const onEnd = () => finish("the runner's relay gave no answer");
  const finish = (problem) => {
    relay.off('data', onData).off('end', onEnd).pause();
    done(problem, got.subarray(got.indexOf('\n') + 1));
  };
  relay.on('data', onData).on('end', onEnd);
  relay.write(`${JSON.stringify({ target })}\n`);
}

function refusal(line) {
  return line === 'ok' ? '' : line.replace(/^error /, '');
}

/**
 * Close it so that its other end sees a broken connection rather than an end, and call back. Not before that has read
 * what came: some (Node and all else that uses libuv) take a reset together with data for an end.
 */
function breakOff(client, done) {
  const giveUp = Date.now() + READ_TIMEOUT_MS;
  client.pause();
  const look = () => {
    if (Date.now() < giveUp && isUnread(client)) {
      setTimeout(look, LOOK_MS);
      return;
    }
    // Unless all bytes and the end were handed over: then nothing is missing there.
    if (!client.writableEnded || client.writableLength > 0) {
      // What resetAndDestroy() sets. But that ends the connection in order first, which its other end may see alone.
      client.resetAndClosing = true;
    }
    client.destroy();
    done();
  };
  look();
}

/** Has its other end, a socket of the same sandbox, still to read some of what was sent to it? */
function isUnread(client) {
  if (client.destroyed || client.writableLength > 0) {
    return !client.destroyed;
  }
  return sockets().some(({ own, other, unsent, unread }) =>
    (own === client.localPort && other === client.remotePort && unsent) ||
    (own === client.remotePort && other === client.localPort && unread));
}

/** The TCP sockets of this sandbox: own and other port; are bytes on their way to the other, are bytes unread? */
function sockets() {
  const lists = ['/proc/net/tcp', '/proc/net/tcp6'].filter(existsSync); // without one, nothing can be known
  const lines = lists.flatMap((path) => readFileSync(path, 'latin1').split('\n').slice(1));
  return lines.filter(Boolean).map((line) => {
    const [, own, other, , queues] = line.trim().split(/\s+/);
    const port = (address) => Number.parseInt(address.slice(-4), 16);
    return { own: port(own), other: port(other), unsent: !/^0+:/.test(queues), unread: !/:0+$/.test(queues) };
  });
}

/** Pass bytes both ways, and each direction's end, until both have ended. */
function passOn(client, relay, rest, end) {
  let isUpDone = false;
  let isDownWhole = false;
  let isDownDone = false;
  const endIfDone = () => isUpDone && isDownDone && end('', false);
  client.on('data', (data) => relay.write(data) || client.pause());
  relay.on('drain', () => client.resume());
  client.on('end', () => relay.end(() => { isUpDone = true; endIfDone(); }));
  const take = unwrap((data) => client.write(data) || relay.pause(), () => {
    isDownWhole = true;
    client.end(() => { isDownDone = true; endIfDone(); });
  });
  relay.on('data', take);
  client.on('drain', () => relay.resume());
  relay.on('end', () => isDownWhole || end('', true)); // cut: the relay told the reason to the logs
  // Also closed when both directions have ended, before the relay has taken everything.
  client.on('close', () => (client.readableEnded && client.writableFinished) || end('', true));
  if (rest.length) {
    take(rest);
  }
  client.resume();
  relay.resume();
}

/** What the relay sends comes in pieces, each behind its length. One of no bytes is the end, and nothing else is. */
function unwrap(onPart, onEnd) {
  let length = NOTHING;
  let left = 0;
  return (data) => {
    while (data.length) {
      const part = data.subarray(0, left || LENGTH_BYTES - length.length);
      data = data.subarray(part.length);
      if (left) {
        left -= part.length;
        onPart(part);
        continue;
      }
      length = Buffer.concat([length, part]);
      if (length.length === LENGTH_BYTES) {
        left = length.readUInt32BE();
        length = NOTHING;
        if (!left) {
          onEnd();
          return;
        }
      }
    }
  };
}

module.exports = { listen };
